"""Rescaling at cuts keeps float32 in range and changes nothing but exponents."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from synflow_pl.flow import LinearNetwork, example_of, linearise
from synflow_pl.networks import VGG, ResNet
from synflow_pl.prunable_parameters import prunable


def gradients(network: nn.Module, rescale: bool = True) -> tuple[LinearNetwork, dict[str, Tensor]]:
    linear_network = linearise(network, example_of(network, (3, 32, 32), None))
    if not rescale:
        linear_network._cut_before = {}
    return linear_network, linear_network.gradients(
        {name: p.detach().abs() for name, p in prunable(network).items()}
    )


@pytest.mark.parametrize(
    "network",
    [VGG(11), VGG(11, batch_norm=False), ResNet(20)],
    ids=["vgg11_bn", "vgg11", "resnet20"],
)
def test_rescaling_multiplies_every_gradient_by_the_same_power_of_two(
    network: nn.Module,
) -> None:
    linear_network, rescaled = gradients(network)
    assert len(linear_network._cut_before) >= 8
    _, plain = gradients(network, rescale=False)
    ratios = torch.cat([(plain[name] / rescaled[name]).flatten() for name in plain])
    ratios = ratios[~ratios.isnan()]  # 0 / 0, where no flow passes
    power = ratios[0]
    assert torch.frexp(power)[0] == 0.5
    for name in plain:
        assert torch.equal(plain[name], rescaled[name] * power), name


def test_a_chain_is_cut_before_every_layer_but_the_first() -> None:
    linear_network, _ = gradients(VGG(11, batch_norm=False))
    assert len(linear_network._cut_before) == 8  # nine weight layers
    assert linear_network.max_layers_between_cuts == 1


def test_a_residual_network_is_cut_at_its_blocks() -> None:
    linear_network, _ = gradients(ResNet(20))
    assert linear_network.max_layers_between_cuts == 2
    # There is a cut before each of the nine blocks and before the classifier.
    assert len(linear_network._cut_before) == 10


def test_a_network_without_cuts_is_scored_in_double_precision() -> None:
    class Dense(nn.Module):
        """Every layer reads all earlier ones, so that no value is crossed by every path."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2 + 2 * index, 2) for index in range(12))

        def forward(self, signal: Tensor) -> Tensor:
            features = [signal]
            for layer in self.layers:
                features.append(layer(torch.cat(features, 1)))
            return torch.cat(features, 1)

    network = Dense()
    linear_network = linearise(network, example_of(network, (2,), None))
    assert linear_network._cut_before == {}
    assert linear_network.max_layers_between_cuts == 12
    assert linear_network.dtype == torch.float64


def test_a_network_in_double_precision_is_scored_in_double_precision() -> None:
    linear_network, actual = gradients(ResNet(20).double())
    assert linear_network.dtype == torch.float64
    assert all(gradient.dtype == torch.float64 for gradient in actual.values())


@pytest.mark.slow
@pytest.mark.parametrize("depth", [110, 1202])
def test_scores_of_deep_resnets_are_finite_in_single_precision(depth: int) -> None:
    network = ResNet(depth)
    _, actual = gradients(network)
    assert all(
        gradient.dtype == torch.float32 and bool(gradient.isfinite().all())
        for gradient in actual.values()
    )
    assert all(bool((gradient > 0).any()) for gradient in actual.values())


def test_without_rescaling_a_deep_resnet_overflows() -> None:
    # Without rescaling, the product leaves the range of float32 between 20 and 110 layers.
    _, plain = gradients(ResNet(110), rescale=False)
    assert not all(bool(gradient.isfinite().all()) for gradient in plain.values())
    _, actual = gradients(ResNet(110))
    assert all(bool(gradient.isfinite().all()) for gradient in actual.values())
