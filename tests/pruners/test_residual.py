from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from synflow_pl import prune
from synflow_pl.networks import FC, VGG, Conv, ResNet, TinyResNet, TinyVGG
from synflow_pl.pruners import Random
from synflow_pl.pruners.residual import is_residual


class Functional(nn.Module):
    """Network with three layers whose forward pass is a given function."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(5, 5) for _ in range(3))
        self.constant = nn.Parameter(torch.ones(5))
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


RESIDUAL: dict[str, Callable[..., Tensor]] = {
    "a shortcut around one layer": lambda m, x: m.second(x + m.first(x)),
    "a shortcut around two layers": lambda m, x: x + m.second(m.first(x).relu()),
    "a layer on the shortcut": lambda m, x: m.third(x) + m.second(m.first(x).relu()),
    "in place": lambda m, x: m.first(x).add_(x),
    "a difference": lambda m, x: x - m.first(x),
    "a scaled branch": lambda m, x: x + m.constant * m.first(x),
}
OTHER: dict[str, Callable[..., Tensor]] = {
    "a chain": lambda m, x: m.third(m.second(m.first(x).relu()).relu()),
    "a learnt shift": lambda m, x: m.second(m.first(x) + m.constant),
    "an activation written as a polynomial": lambda m, x: m.second((y := m.first(x)) + 0.04 * y**3),
    "a mean that is subtracted": lambda m, x: m.second(
        (y := m.first(x)) - y.mean(-1, keepdim=True)
    ),
    "parallel layers": lambda m, x: m.third(m.first(x) + m.second(x)),
    "joined signals": lambda m, x: m.second(torch.cat([x, m.first(x)], -1)[:, :5]),
    "a gate": lambda m, x: x * m.first(x).sigmoid(),
}


@pytest.mark.parametrize("example", [True, False], ids=["with an example", "without one"])
@pytest.mark.parametrize("name", [*RESIDUAL, *OTHER])
def test_a_network_is_residual_if_it_adds_signals_of_different_depths(
    name: str, example: bool
) -> None:
    network = Functional((RESIDUAL | OTHER)[name])
    assert is_residual(network, (torch.randn(2, 5),) if example else None) == (name in RESIDUAL)


@pytest.mark.parametrize(
    ("build", "shape", "residual"),
    [
        (FC, (1, 28, 28), False),
        (Conv, (1, 28, 28), False),
        (lambda: VGG(11), (3, 32, 32), False),
        (lambda: TinyVGG(11), (3, 64, 64), False),
        (lambda: ResNet(20), (3, 32, 32), True),
        (lambda: ResNet(8, residual_gains=True), (3, 32, 32), True),
        (lambda: TinyResNet(18), (3, 64, 64), True),
        (lambda: torchvision.models.densenet121(), (3, 64, 64), False),
        (lambda: torchvision.models.squeezenet1_0(), (3, 64, 64), False),
        (lambda: torchvision.models.mobilenet_v3_small(), (3, 64, 64), True),
    ],
)
def test_residual_networks_are_detected_with_and_without_example_inputs(
    build: Callable[[], nn.Module], shape: tuple[int, ...], residual: bool
) -> None:
    network = build()
    assert is_residual(network, (torch.randn(1, *shape),)) == residual
    assert is_residual(network, None) == residual


def test_detection_of_residual_networks_does_not_change_the_network() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.cache = nn.Linear(5, 5), torch.zeros(1)

        def forward(self, x: Tensor) -> Tensor:
            self.cache = self.layer(x)
            return self.cache + x

    network = Caching()
    assert is_residual(network, None)
    assert torch.equal(network.cache, torch.zeros(1))
    copy.deepcopy(network)


def test_smart_ratio_for_a_network_that_fx_cannot_trace_requires_an_example_or_the_rule() -> None:
    def branching(m: Functional, x: Tensor) -> Tensor:
        return m.first(x) if x.sum() > 0 else m.second(m.first(x))

    with pytest.raises(
        ValueError,
        match=r"smart_ratio depends on whether Functional is a residual network.*give input_shape=",
    ):
        prune(Functional(branching), Random(quota="smart_ratio"), density=0.5)
    assert (
        prune(
            Functional(branching), Random(quota="smart_ratio"), density=0.5, input_shape=(5,)
        ).kept
        == 38
    )
    assert (
        prune(Functional(branching), Random(quota="smart_ratio", residual=True), density=0.5).kept
        == 38
    )
