"""Tanaka et al. 2020, Theorems 1 and 2: flow is conserved at every hidden unit and every cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from synflow_pl.flow import example_of, linearise
from synflow_pl.networks import FC, VGG, Conv, ResNet
from synflow_pl.prunable_parameters import prunable


def scores(network: nn.Module, shape: tuple[int, ...]) -> dict[str, Tensor]:
    linear_network = linearise(network, example_of(network, shape, None))
    weights = {name: p.detach().abs() for name, p in prunable(network).items()}
    return {
        name: weights[name] * gradient
        for name, gradient in linear_network.gradients(weights).items()
    }


def into(score: Tensor) -> Tensor:
    """Return the flow into each unit of a layer: the sum over its incoming weights."""
    return score.flatten(1).sum(1)


def out_of(score: Tensor) -> Tensor:
    """Return the flow out of each unit that a layer reads: the sum over its outgoing weights."""
    return score.transpose(0, 1).flatten(1).sum(1)


def without_biases(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.bias = None
    return network


@pytest.mark.parametrize(
    ("network", "shape"),
    [(FC(), (1, 28, 28)), (VGG(16, batch_norm=False), (3, 32, 32)), (VGG(16), (3, 32, 32))],
    ids=["fc", "vgg16", "vgg16_bn"],
)
def test_flow_into_a_hidden_unit_of_a_chain_equals_flow_out_of_it(
    network: nn.Module, shape: tuple[int, ...]
) -> None:
    layers = list(scores(without_biases(network), shape).values())
    for layer, following in pairwise(layers):
        torch.testing.assert_close(into(layer), out_of(following), rtol=1e-5, atol=0)


def test_flow_out_of_a_flattened_unit_is_summed_over_its_positions() -> None:
    first, second, head = scores(without_biases(Conv(width=4)), (1, 28, 28)).values()
    torch.testing.assert_close(into(first), out_of(second), rtol=1e-5, atol=0)
    torch.testing.assert_close(
        into(second), head.view(10, 4, 28 * 28).sum((0, 2)), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (FC(), (1, 28, 28)),
        (Conv(), (1, 28, 28)),
        (VGG(19, batch_norm=False), (3, 32, 32)),
        (VGG(19), (3, 32, 32)),
    ],
)
def test_every_layer_of_a_chain_carries_the_same_flow(
    network: nn.Module, shape: tuple[int, ...]
) -> None:
    sums = torch.stack(
        [score.double().sum() for score in scores(without_biases(network), shape).values()]
    )
    torch.testing.assert_close(sums, sums[:1].expand_as(sums), rtol=1e-5, atol=0)


def test_flow_is_conserved_at_the_units_of_a_residual_network_including_its_shortcuts() -> None:
    network = ResNet(20)
    layer_scores = scores(network, (3, 32, 32))

    def flow(name: str) -> Tensor:
        return layer_scores[f"{name}.weight"]

    # The flow through each channel of a block's output, on the shortcut and the branch together.
    carried = into(flow("conv"))
    for index, block in enumerate(network.blocks):
        inside, outside = flow(f"blocks.{index}.conv1"), flow(f"blocks.{index}.conv2")
        torch.testing.assert_close(into(inside), out_of(outside), rtol=1e-5, atol=0)
        if isinstance(block.shortcut, nn.Identity):
            # The shortcut carries the part of each channel's flow that does not enter the branch.
            shortcut = carried - out_of(inside)
            assert (shortcut > 0).all()
            carried = into(outside) + shortcut
        else:
            shortcut_scores = flow(f"blocks.{index}.shortcut.0")
            torch.testing.assert_close(
                carried, out_of(inside) + out_of(shortcut_scores), rtol=1e-5, atol=0
            )
            carried = into(outside) + into(shortcut_scores)
    torch.testing.assert_close(carried, out_of(flow("fc")), rtol=1e-5, atol=0)
