"""Compares a network with equal positions left out with the same network at all positions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from synflow_pl.flow import example_of, linearise
from synflow_pl.flow.node import Node
from synflow_pl.networks import VGG, ResNet
from synflow_pl.prunable_parameters import prunable


def gradients(
    network: nn.Module, shape: tuple[int, ...]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return dR/dw of the linear network and of the positive network, each divided by R."""
    network = network.double().eval()
    weights = {name: parameter.detach().abs() for name, parameter in prunable(network).items()}
    actual = linearise(network, example_of(network, shape, None)).gradients(weights)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    network(torch.ones(1, *shape, dtype=torch.float64)).sum().backward()
    expected = {name: parameter.grad for name, parameter in prunable(network).items()}
    # Every path of a chain passes its first layer, so the scores of that layer sum to R.
    name = next(iter(weights))
    return tuple(of_all(every, (weights[name] * every[name]).sum()) for every in (actual, expected))


def of_all(gradients: dict[str, Tensor], total: Tensor) -> dict[str, Tensor]:
    """Return gradients divided by R, or unchanged if R is zero (a layer may read only padding)."""
    return {
        name: gradient / total if total > 0 else gradient for name, gradient in gradients.items()
    }


def sizes(network: nn.Module, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the number of positions that each convolution of the linear network computes."""
    linear_network = linearise(network.eval(), example_of(network, shape, None))
    made: list[tuple[int, ...]] = []

    def compute(function: Any, node: Node, arguments: Sequence[Any]) -> Any:
        result = function(*arguments)
        if node.contraction and result.dim() > 2:
            made.append(tuple(result.shape[2:]))
        return result

    linear_network.flow({}, compute=compute)
    return made


LAYERS = st.one_of(
    st.tuples(
        st.just("conv"), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)
    ),
    st.tuples(st.just("max"), st.integers(1, 3), st.integers(1, 3), st.just(0), st.just(1)),
    st.tuples(st.just("average"), st.integers(1, 3), st.integers(1, 3), st.just(0), st.just(1)),
    st.tuples(st.just("depthwise"), st.just(3), st.integers(1, 2), st.just(1), st.just(1)),
)


# A height of one position, whose window reads the border, beside a width with equal positions.
ONE_ROW = [("max", 1, 2, 0, 1), ("max", 1, 2, 0, 1), ("max", 3, 1, 0, 1), ("conv", 3, 1, 1, 2)]


@example(layers=ONE_ROW, size=(20, 34))
@settings(max_examples=60, deadline=None)
@given(
    layers=st.lists(LAYERS, min_size=1, max_size=6),
    size=st.tuples(st.integers(20, 41), st.integers(20, 41)),
)
def test_deduplication_leaves_the_gradients_of_any_chain_of_windows_unchanged(
    layers: list[Any], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    modules: list[nn.Module] = [nn.Conv2d(1, 2, 3, padding=1, bias=False)]
    for kind, kernel, stride, padding, dilation in layers:
        if kind == "conv":
            modules.append(nn.Conv2d(2, 2, kernel, stride, padding, dilation, bias=False))
        elif kind == "depthwise":
            modules.append(nn.Conv2d(2, 2, kernel, stride, padding, groups=2, bias=False))
        else:
            modules.append((nn.MaxPool2d if kind == "max" else nn.AvgPool2d)(kernel, stride))
    network = nn.Sequential(*modules)
    with torch.no_grad():
        try:
            left = network(torch.ones(1, 1, *size)).flatten(1).shape[1]
        except RuntimeError:  # the image is smaller than a window
            return
    network.append(nn.Flatten()).append(nn.Linear(left, 2, bias=False))
    actual, expected = gradients(network, (1, *size))
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    "network", [lambda: VGG(11), lambda: ResNet(20)], ids=["VGG-11", "ResNet-20"]
)
def test_deduplication_leaves_the_gradients_of_a_network_unchanged(network: Any) -> None:
    actual, expected = gradients(network(), (3, 32, 32))
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-10, atol=1e-13)


class Branches(nn.Module):
    """Two branches of different kernel sizes and equal output sizes, and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.wide = nn.Conv2d(2, 2, 7, padding=3, bias=False)
        self.narrow = nn.Conv2d(2, 2, 1, bias=False)
        self.head = nn.Linear(2 * 12 * 12, 2, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        both = self.wide(stem) + self.narrow(stem) + stem
        return self.head(self.pooled(both).flatten(1))

    def pooled(self, signal: Tensor) -> Tensor:
        return nn.functional.max_pool2d(signal, 2)


class Placed(Branches):
    """Branches in which an operation reads the indices of the maxima."""

    def pooled(self, signal: Tensor) -> Tensor:
        values, places = nn.functional.max_pool2d(signal, 2, return_indices=True)
        return values + signal.flatten(2).gather(2, places.flatten(2)).view_as(values)


def test_deduplication_leaves_the_gradients_of_branches_with_different_kernels_unchanged() -> None:
    torch.manual_seed(0)
    actual, expected = gradients(Branches(), (1, 24, 24))
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-10, atol=1e-13)


def test_an_operation_that_reads_indices_of_maxima_sees_every_position(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network = Placed().double()
    short, _ = gradients(copy.deepcopy(network), (1, 24, 24))
    monkeypatch.setattr(
        "synflow_pl.flow.builder.deduplicate_positions",
        lambda nodes, sources, outputs, *_: (list(nodes), sources, outputs),
    )
    whole, _ = gradients(network, (1, 24, 24))
    for name, gradient in whole.items():
        torch.testing.assert_close(short[name], gradient, rtol=1e-10, atol=1e-13)


def test_deeper_layers_compute_more_positions() -> None:
    # After each layer, one more position differs at either border; one stands for all others: 3, 5,
    # 7. From 5 to 7 no copies are put back, so the second layer computes 7 as well. The pooling
    # reads 10, with an even number left out, put back after the third.
    layers = [nn.Conv2d(1 if index == 0 else 2, 2, 3, padding=1) for index in range(3)]
    assert sizes(nn.Sequential(*layers), (1, 101, 101)) == [(3, 3), (7, 7), (7, 7)]
    assert sizes(nn.Sequential(*layers, nn.MaxPool2d(2)), (1, 100, 100)) == [(3, 3), (7, 7), (7, 7)]


def test_early_layers_cost_the_same_for_an_image_of_any_size() -> None:
    features = VGG(16).features
    small, large = sizes(features, (3, 64, 64)), sizes(features, (3, 512, 512))
    assert small[:4] == large[:4]
    assert max(small[0]) < 10
