"""Tests that compaction keeps every tensor of an output, in containers and objects of any class."""

from __future__ import annotations

import collections
import dataclasses
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synflow_pl import Compaction, Masks, compact
from synflow_pl.graph.outputs import leaves
from synflow_pl.prunable_parameters import prunable


class TwoHeads(nn.Module):
    """A network that returns ``give`` of the outputs of two heads."""

    def __init__(self, give: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.scores = nn.Linear(8, 16), nn.Linear(16, 4)
        self.hidden, self.marks, self.give = nn.Linear(16, 12), nn.Linear(12, 6), give

    def forward(self, x: Tensor) -> Any:
        h = self.body(x).relu()
        return self.give(self.scores(h), self.marks(self.hidden(h).relu()))


def random_masks(network: nn.Module, share: float = 0.3) -> Masks:
    generator = torch.Generator().manual_seed(0)
    return Masks(
        {
            name: torch.rand(weight.shape, generator=generator) < share
            for name, weight in prunable(network).items()
        }
    )


@dataclasses.dataclass
class Data:
    a: Tensor
    b: Tensor


class Plain:
    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.parts = a, [{"deep": (b,)}]


class Slots:
    __slots__ = ("__b", "a")

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.__b = a, b


class Ordered(collections.OrderedDict):
    """A derived class, which pytree does not know although it knows the base class."""


Pair = collections.namedtuple("Pair", "a b")


def marked(a: Tensor, b: Tensor) -> Tensor:
    a.extra = b
    return a


KINDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "booleans": lambda a, b: (a, b > 0),
    "booleans alone": lambda a, b: b > 0,
    "whole numbers": lambda a, b: (a, b.round().long()),
    "bytes": lambda a, b: (a, (b.sigmoid() * 255).to(torch.uint8)),
    "indices": lambda a, b: (a, b.topk(3).indices),
    "complex numbers": lambda a, b: (a, torch.complex(b, 2 * b)),
    "half precision": lambda a, b: (a, b.half()),
    "infinities": lambda a, b: (a, b.masked_fill(b > 0, float("-inf"))),
    "an empty tensor": lambda a, b: (a, b, b[:0]),
    "a dataclass": Data,
    "an object with a list of dicts": Plain,
    "booleans in an object": lambda a, b: Plain(a, b > 0),
    "slots": Slots,
    "a subclass of OrderedDict": lambda a, b: Ordered(a=a, b=b),
    "a UserDict": lambda a, b: collections.UserDict(a=a, b=b),
    "a named tuple": Pair,
    "a deque": lambda a, b: collections.deque([a, b]),
    "a namespace": lambda a, b: types.SimpleNamespace(a=a, b=b),
    "an attribute of a tensor": marked,
    "a distribution": lambda a, b: torch.distributions.Normal(b, b.exp(), validate_args=False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_compaction_keeps_outputs_of_many_types(kind: str) -> None:
    torch.manual_seed(0)
    network = TwoHeads(KINDS[kind]).eval()
    masks = random_masks(network)
    small = compact(network, masks, torch.ones(1, 8))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in network.parameters())
    masks.apply(network)
    x = torch.randn(5, 8)
    expected, actual = (leaves(each(x), "TwoHeads") for each in (network, small))
    assert expected.keys() == actual.keys()
    assert sum(isinstance(leaf, Tensor) for leaf in expected.values()) >= 1
    for path, leaf in expected.items():
        if isinstance(leaf, Tensor):
            loose = 1e-3 if leaf.dtype == torch.half else 1e-5
            torch.testing.assert_close(actual[path], leaf, rtol=loose, atol=loose)


def generated(a: Tensor, b: Tensor) -> Any:
    yield a
    yield b


@pytest.mark.parametrize(
    ("give", "part"),
    [
        (generated, "output of TwoHeads.forward, a value of type generator"),
        (lambda a, b: (a, lambda: b), r"output\[1\] of TwoHeads.forward, a value of type function"),
        (
            lambda a, b: {"a": a, "rest": iter([b])},
            r"output\['rest'\] of TwoHeads.forward, a value of type list_iterator",
        ),
        (lambda a, b: {a, b}, "output of TwoHeads.forward, a value of type set"),
        (
            lambda a, b: (a, nn.ParameterList([nn.Parameter(b)])),
            "value of type torch.nn.modules.container.ParameterList",
        ),
    ],
)
def test_an_output_of_an_unknown_type_is_an_error_that_names_its_place(
    give: Callable[..., Any], part: str
) -> None:
    network = TwoHeads(give).eval()
    with pytest.raises(
        ValueError,
        match=f"compaction cannot look into {'.*' if part.startswith('value') else ''}{part}",
    ):
        compact(network, random_masks(network), torch.ones(1, 8))
    assert not network._forward_hooks


def test_a_network_that_computes_with_sparse_tensors_is_an_error() -> None:
    network = TwoHeads(lambda a, b: (a, b.to_sparse())).eval()
    with pytest.raises(
        ValueError,
        match=r"computes with tensors of layout torch\.sparse_coo, which compaction cannot follow",
    ):
        compact(network, random_masks(network), torch.ones(1, 8))


def test_nothing_is_removed_if_the_output_includes_a_width() -> None:
    class Width(TwoHeads):
        def forward(self, x: Tensor) -> Any:
            return self.scores(self.body(x)), self.body(x).shape[1]

    network = Width(Pair).eval()
    compaction = Compaction(network, random_masks(network, 0.1), (torch.ones(1, 8),))
    assert compaction.notes[0].startswith(
        "nothing was taken out: Width with smaller layers gives something else"
        " (output[1] in eval mode)"
    )
