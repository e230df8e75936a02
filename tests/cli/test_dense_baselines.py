"""Narrower dense networks: as many weights, or as many FLOPs, as the pruned one."""

from __future__ import annotations

import pytest

from synflow_pl.cli.dense_baselines import dense_baseline
from synflow_pl.networks import VGG, TinyResNet
from synflow_pl.runs.sweep_grid import Sweep, Task


def task(recipe: str, like: str, density: float) -> Task:
    return Sweep([recipe], [f"narrower_{like}"], [density]).tasks()[0]


def test_a_narrower_fc_has_as_many_weights_as_the_pruned_one() -> None:
    options, about = dense_baseline(task("mnist_fc", "parameters", 0.1))
    # Of width w: 784 w + 4 w^2 + 10 w weights; 100 gives 119,400, and 14 gives 11,900, nearest to
    # 11,940 (15 gives 12,810).
    assert options == ("--model.network.width", "14")
    assert (about.weights, about.whole_weights) == (11_900, 119_400)
    assert (about.flops, about.whole_flops) == (2 * 11_900, 2 * 119_400)


def test_in_a_network_of_linear_layers_flops_follow_weights() -> None:
    assert (
        dense_baseline(task("mnist_fc", "flops", 0.1))[1].width
        == dense_baseline(task("mnist_fc", "parameters", 0.1))[1].width
    )


def test_a_convolution_s_weights_go_with_the_square_of_the_width() -> None:
    _, about = dense_baseline(task("cifar10_vgg16", "parameters", 0.01))
    assert about.width == pytest.approx(0.1, rel=0.02)
    assert about.weights == pytest.approx(0.01 * about.whole_weights, rel=0.01)


def test_a_network_of_width_one_is_the_original_and_a_half_has_half_the_channels() -> None:
    assert [
        layer.out_channels
        for layer in VGG(11, width_factor=0.5).features
        if hasattr(layer, "out_channels")
    ][:3] == [32, 64, 128]
    assert TinyResNet(18, width_factor=0.5, num_classes=10).fc.in_features == 256
    with pytest.raises(ValueError, match=r"VGG: width_factor=0 must be above 0"):
        VGG(11, width_factor=0)
