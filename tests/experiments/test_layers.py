"""Total scores of layers, which are equal for SynFlow on a chain and differ for other pruners."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from synflow_pl.experiments import first_scores, largest_difference, layer_scores, variation
from synflow_pl.flow import example_of
from synflow_pl.networks import VGG
from synflow_pl.pruners import SNIP, GraSP, Magnitude, Pruner, Random, SynFlow


def totals(
    network: nn.Module, shape: tuple[int, ...], pruner: Pruner, images: int = 0
) -> list[float]:
    inputs = example_of(network, shape, None)
    batches = [
        (torch.randn(1, *shape, dtype=inputs[0].dtype), torch.tensor([label]))
        for label in range(images)
    ]
    return [
        layer.total
        for layer in layer_scores(first_scores(network, pruner, inputs, batches=batches))
    ]


def test_a_layer_score_has_a_total_and_an_average() -> None:
    (layer,) = layer_scores({"fc.weight": torch.tensor([[1.0, 2.0], [-1.0, 4.0]])})
    assert (layer.layer, layer.size, layer.total, layer.average) == ("fc.weight", 4, 6, 1.5)


def test_variation_is_the_sample_deviation_over_the_magnitude_of_the_mean() -> None:
    assert variation([1.0, 3.0]) == pytest.approx(2**0.5 / 2)
    assert variation([-1.0, -3.0]) == pytest.approx(2**0.5 / 2)
    assert variation([5.0, 5.0, 5.0]) == 0
    with pytest.raises(ValueError, match="two layers or more, got 1"):
        variation([1.0])


def test_the_largest_difference_is_relative_to_the_mean() -> None:
    assert largest_difference([1.0, 2.0, 3.0]) == pytest.approx(0.5)


def test_every_layer_of_a_chain_has_the_same_total_synflow_score() -> None:
    found = totals(VGG(11, input_shape=(3, 16, 16)).double(), (3, 16, 16), SynFlow())
    assert largest_difference(found) < 1e-12


@pytest.mark.parametrize("pruner", [Random, Magnitude, SNIP])
def test_layers_of_a_chain_have_different_totals_under_other_pruners(pruner: type[Pruner]) -> None:
    assert (
        variation(totals(VGG(11, input_shape=(3, 16, 16)), (3, 16, 16), pruner(), images=8)) > 0.3
    )


@pytest.fixture(scope="module")
def vgg19() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.vgg19()


@pytest.mark.slow
def test_synflow_totals_on_imagenets_vgg19_agree_to_one_in_ten_thousand(vgg19: nn.Module) -> None:
    found = totals(vgg19, (3, 224, 224), SynFlow())
    assert largest_difference(found) < 1e-4
    assert f"{variation(found):.4f}" == "0.0000"


@pytest.mark.slow
@pytest.mark.parametrize(("pruner", "published"), [(Random, 3.09), (Magnitude, 2.61)])
def test_data_free_scores_on_imagenets_vgg19_vary_as_published(
    vgg19: nn.Module, pruner: type[Pruner], published: float
) -> None:
    assert variation(totals(vgg19, (3, 224, 224), pruner())) == pytest.approx(published, abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("pruner", "published"), [(SNIP, 1.30), (GraSP, 0.071)])
def test_scores_on_noise_on_imagenets_vgg19_vary_nearly_as_published_on_images(
    vgg19: nn.Module, pruner: type[Pruner], published: float
) -> None:
    assert variation(totals(vgg19, (3, 224, 224), pruner(), images=2)) == pytest.approx(
        published, rel=0.25
    )
