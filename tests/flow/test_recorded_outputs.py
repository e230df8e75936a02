"""Every tensor that a network returns is an output, in containers and objects of any class."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synflow_pl import prune
from synflow_pl.diagnosis import diagnose
from synflow_pl.flow import example_of, is_connected, trace
from synflow_pl.masks import Masks
from synflow_pl.prunable_parameters import prunable
from synflow_pl.pruners import SynFlow
from tests.compaction.test_outputs import KINDS, TwoHeads, generated

DECISIONS = ("booleans", "whole numbers", "bytes", "indices", "booleans in an object")
ALONE = ("booleans alone", "a distribution", "an attribute of a tensor")
BY_MAGNITUDE = (
    "pruned by magnitude, since no flow passes through them"
    " (queries, keys, gates, parts not used): "
)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in DECISIONS + ALONE])
def test_layers_of_both_outputs_are_scored_in_any_container(kind: str) -> None:
    torch.manual_seed(0)
    network = TwoHeads(KINDS[kind])
    pruner = SynFlow()
    masks = prune(network, pruner, density=0.3, rounds=4, input_shape=(8,))
    assert not any("magnitude" in note or "kept dense" in note for note in pruner.notes)
    assert 0 < int(masks["marks.weight"].sum()) < masks["marks.weight"].numel()


@pytest.mark.parametrize("kind", DECISIONS)
def test_layers_of_integer_and_boolean_outputs_are_named_and_effective(kind: str) -> None:
    torch.manual_seed(0)
    network = TwoHeads(KINDS[kind])
    pruner = SynFlow()
    masks = prune(network, pruner, density=0.3, rounds=4, input_shape=(8,))
    assert f"{BY_MAGNITUDE}hidden.weight, marks.weight" in pruner.notes
    effective = {
        layer.name: layer.effective for layer in diagnose(network, masks, input_shape=(8,)).layers
    }
    assert effective["marks.weight"] > 0
    assert is_connected(network, masks, example_of(network, (8,), None))


def test_booleans_that_are_the_only_output_are_scored() -> None:
    torch.manual_seed(0)
    network, pruner = TwoHeads(KINDS["booleans alone"]), SynFlow()
    masks = prune(network, pruner, density=0.3, rounds=4, input_shape=(8,))
    assert 0 < int(masks["marks.weight"].sum()) < masks["marks.weight"].numel()
    assert pruner.notes[0] == f"{BY_MAGNITUDE}scores.weight"


def test_a_large_boolean_output_does_not_change_the_masks() -> None:
    class Segments(nn.Module):
        def __init__(self, decide: bool) -> None:
            super().__init__()
            self.a, self.b, self.c, self.decide = (
                nn.Conv2d(3, 16, 3),
                nn.Conv2d(16, 16, 3),
                nn.Conv2d(16, 5, 1),
                decide,
            )

        def forward(self, x: Tensor) -> Any:
            hidden = self.b(self.a(x).relu()).relu()
            out = self.c(hidden).mean((2, 3))
            return (
                {"out": out, "mask": hidden.sum(1) > 0, "class": hidden.argmax(1)}
                if self.decide
                else out
            )

    torch.manual_seed(0)
    plain = Segments(False)
    beside = copy.deepcopy(plain)
    beside.decide = True
    right, masks = (
        prune(each, SynFlow(), density=0.1, rounds=4, input_shape=(3, 12, 12))
        for each in (plain, beside)
    )
    assert all(torch.equal(masks[name], right[name]) for name in right)


@pytest.mark.parametrize(
    "kind", ["a dataclass", "an object with a list of dicts", "slots", "a UserDict", "a namespace"]
)
def test_masks_are_those_of_a_tuple_of_the_same_tensors(kind: str) -> None:
    torch.manual_seed(0)
    network = TwoHeads(lambda a, b: (a, b))
    other = copy.deepcopy(network)
    other.give = KINDS[kind]
    plain, held = (
        prune(each, SynFlow(), density=0.2, rounds=4, input_shape=(8,)) for each in (network, other)
    )
    assert all(torch.equal(plain[name], held[name]) for name in plain)


def test_comparisons_of_the_logits_as_outputs_do_not_change_the_masks() -> None:
    torch.manual_seed(0)
    network = TwoHeads(lambda a, b: (a, b))
    other = copy.deepcopy(network)
    other.give = lambda a, b: (a, b, a > 0, b > 0)
    plain, beside = (
        prune(each, SynFlow(), density=0.2, rounds=4, input_shape=(8,)) for each in (network, other)
    )
    assert all(torch.equal(plain[name], beside[name]) for name in plain)


@pytest.mark.parametrize(
    "give", [lambda a, b: (a, b, a), lambda a, b: {"a": a, "b": b, "rest": [b, b]}]
)
def test_a_tensor_returned_twice_counts_once(give: Callable[[Tensor, Tensor], Any]) -> None:
    torch.manual_seed(0)
    graph = trace(TwoHeads(give), (torch.ones(1, 8),))
    assert len(graph.outputs) == 2


def test_a_network_with_an_opaque_output_beside_a_tensor_is_pruned() -> None:
    torch.manual_seed(0)
    network = TwoHeads(lambda a, b: (a + b.sum(), lambda: b))
    assert prune(network, SynFlow(), density=0.3, rounds=2, input_shape=(8,)).kept > 0


@pytest.mark.parametrize(
    "give", [generated, lambda a, b: lambda: (a, b), lambda a, b: (a + b.sum()).detach().numpy()]
)
def test_a_network_with_only_an_opaque_output_is_refused_with_the_type_of_the_output(
    give: Callable[[Tensor, Tensor], Any],
) -> None:
    network = TwoHeads(give)
    with pytest.raises(
        ValueError,
        match=(
            r"pruning cannot look into output of TwoHeads\.forward, a value of type"
            r" (generator|function|numpy)"
        ),
    ):
        prune(network, SynFlow(), density=0.3, rounds=2, input_shape=(8,))


class Echo(nn.Module):
    """A network that returns its input beside its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.head(self.body(x).relu()), x, x > 0


def test_a_returned_input_does_not_connect_a_network() -> None:
    network = Echo()
    masks = Masks(
        {
            name: torch.zeros_like(weight, dtype=torch.bool)
            for name, weight in prunable(network).items()
        }
    )
    assert not is_connected(network, masks, example_of(network, (8,), None))
    with pytest.warns(UserWarning, match="the network is dead"):
        prune(network, SynFlow(), num_kept=1, rounds=1, input_shape=(8,))


def test_returned_token_indices_do_not_connect_a_network() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 4)

        def forward(self, words: Tensor) -> dict[str, Any]:
            return {"logits": self.head(self.table(words)), "words": words, "mask": words != 0}

    network = Words()
    masks = Masks({"head.weight": torch.zeros(4, 8, dtype=torch.bool)})
    assert not is_connected(network, masks, (torch.tensor([[1, 2, 3]]),))
