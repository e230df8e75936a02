"""Tests of narrower dense networks with as many weights, or as many FLOPs, as a pruned one."""

from __future__ import annotations

import pytest

from synflow_pl.cli.dense_baselines import dense_baseline
from synflow_pl.networks import VGG, TinyResNet
from synflow_pl.runs.sweep_grid import Sweep, Task


def task(recipe: str, like: str, density: float) -> Task:
    return Sweep([recipe], [f"narrower_{like}"], [density]).tasks()[0]


def test_a_narrower_fc_has_as_many_weights_as_the_pruned_one() -> None:
    baseline = dense_baseline(task("mnist_fc", "parameters", 0.1))
    # Width w gives 784 w + 4 w^2 + 10 w weights: 119,400 for w = 100, and 11,900 for w = 14, which
    # is the closest to 11,940 (w = 15 gives 12,810).
    assert (baseline.argument, baseline.width) == ("width", 14)
    assert (baseline.weights, baseline.whole_weights) == (11_900, 119_400)
    assert (baseline.flops, baseline.whole_flops) == (2 * 11_900, 2 * 119_400)


def test_in_a_network_of_linear_layers_flops_follow_weights() -> None:
    assert (
        dense_baseline(task("mnist_fc", "flops", 0.1)).width
        == dense_baseline(task("mnist_fc", "parameters", 0.1)).width
    )


def test_the_weights_of_convolutions_scale_with_the_square_of_the_width() -> None:
    baseline = dense_baseline(task("cifar10_vgg16", "parameters", 0.01))
    assert baseline.width == pytest.approx(0.1, rel=0.02)
    assert baseline.weights == pytest.approx(0.01 * baseline.whole_weights, rel=0.01)


def test_width_factor_one_is_the_original_network_and_a_half_has_half_the_channels() -> None:
    assert [
        layer.out_channels
        for layer in VGG(11, width_factor=0.5).features
        if hasattr(layer, "out_channels")
    ][:3] == [32, 64, 128]
    assert TinyResNet(18, width_factor=0.5, num_classes=10).fc.in_features == 256
    with pytest.raises(ValueError, match=r"VGG: width_factor=0 must be above 0"):
        VGG(11, width_factor=0)
