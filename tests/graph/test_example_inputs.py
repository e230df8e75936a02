"""Example inputs of any structure give the results of the same tensors by position."""

from __future__ import annotations

import copy
from collections import UserDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from synflow_pl import compact, diagnose, prune
from synflow_pl.graph.example_inputs import as_inputs, call, from_arguments
from synflow_pl.pruners import SNIP, Magnitude, Random, SynFlow


class Layers(nn.Module):
    """Two inputs, an optional mask over positions and a number; by position in the plain form."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(6, 12), nn.Linear(6, 12)
        self.middle, self.last = nn.Linear(12, 12), nn.Linear(12, 3)

    def compute(self, x: Tensor, y: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
        hidden = (self.left(x) + scale * self.right(y)).relu()
        output: Tensor = self.last((mask @ self.middle(hidden)).relu())
        return output


class Positional(Layers):
    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return self.compute(x, y, mask, 0.5)


class Keywords(Layers):
    def forward(self, *, x: Tensor, y: Tensor, mask: Tensor, scale: float) -> Tensor:
        return self.compute(x, y, mask, scale)


class Nested(Layers):
    def forward(self, pair: tuple[Tensor, list[Tensor]], options: dict[str, Any]) -> Tensor:
        x, (y,) = pair
        return self.compute(x, y, options["mask"], options["scale"])


class Optional(Layers):
    def forward(
        self, x: Tensor, nothing: None, y: Tensor, mask: Tensor, name: str, scale: float
    ) -> Tensor:
        assert nothing is None
        assert name == "any"
        return self.compute(x, y, mask, scale)


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class OfTuple(Layers):
    def forward(self, pair: Pair, mask: Tensor, scale: float) -> Tensor:
        return self.compute(pair.x, pair.y, mask, scale)


X, Y = torch.randn(2, 1, 5, 6, generator=torch.Generator().manual_seed(0))
MASK = torch.ones(5, 5).tril()  # without a batch dimension
EXAMPLES: list[tuple[type[Layers], Any]] = [
    (Keywords, {"x": X, "y": Y, "mask": MASK, "scale": 0.5}),
    (Keywords, UserDict({"x": X, "y": Y, "mask": MASK, "scale": 0.5})),
    (Nested, ((X, [Y]), {"mask": MASK, "scale": 0.5})),
    (Nested, {"pair": (X, [Y]), "options": {"scale": 0.5, "mask": MASK}}),
    (Optional, [X, None, Y, MASK, "any", 0.5]),
    (OfTuple, (Pair(X, Y), MASK, 0.5)),
]


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
@pytest.mark.parametrize("pruner", [SynFlow(), Magnitude(), Random()])
def test_any_structure_gives_the_results_of_tensors_by_position(index: int, pruner: Any) -> None:
    kind, example = EXAMPLES[index]
    plain, network = Positional(), kind()
    results = []
    for net, inputs in ((plain, (X, Y, MASK)), (network, example)):
        torch.manual_seed(0)
        masks = prune(
            net, copy.deepcopy(pruner), density=0.1, example_input=inputs, on_collapse="ignore"
        )
        diagnosis = diagnose(net, masks, example_input=inputs)
        small = compact(net, masks, inputs)
        with torch.no_grad():
            output = call(small.eval(), as_inputs(inputs))
            torch.testing.assert_close(output, call(net.eval(), as_inputs(inputs)))
        results.append((masks, diagnosis, sum(x.numel() for x in small.parameters())))
    (masks, diagnosis, size), (other_masks, other_diagnosis, other_size) = results
    assert all(torch.equal(masks[name], other_masks[name]) for name in masks)
    assert diagnosis.layers == other_diagnosis.layers
    assert size == other_size < sum(parameter.numel() for parameter in plain.parameters())


def test_a_collapse_is_found_on_inputs_of_any_structure() -> None:
    example = {"x": X, "y": Y, "mask": MASK, "scale": 0.5}
    with pytest.warns(UserWarning, match="no path of kept weights"):
        prune(Keywords(), Random(), num_kept=3, example_input=example)


def test_a_data_driven_pruner_takes_an_example_beside_its_batches() -> None:
    example = {"x": X, "y": Y, "mask": MASK, "scale": 0.5}
    masks = prune(
        Keywords(),
        SNIP(),
        density=0.3,
        example_input=example,
        batches=[example],
        loss=lambda network, batch: network(**batch).square().mean(),
        on_collapse="error",
    )
    assert masks.kept == masks.total - int(0.7 * masks.total)


def test_the_arguments_are_those_that_were_given_with_other_tensors() -> None:
    inputs = from_arguments((X, None), {"mask": {"tokens": MASK}, "scale": 2})
    assert [tensor.shape for tensor in inputs] == [X.shape, MASK.shape]
    positional, keywords = inputs.replaced([Y, MASK + 1]).arguments()
    assert torch.equal(positional[0], Y)
    assert positional[1] is None
    assert torch.equal(keywords["mask"]["tokens"], MASK + 1)
    assert keywords["scale"] == 2
    copied = copy.deepcopy(inputs)
    assert torch.equal(copied.arguments()[0][0], X)


def test_an_error_of_forward_names_the_shapes_of_all_tensors() -> None:
    example = {"x": X[..., :5], "y": Y, "mask": MASK, "scale": 0.5}
    with pytest.raises(
        ValueError, match=r"^Keywords fails on an input of \(1, 5, 5\) float32, \(1, 5, 6\)"
    ):
        prune(Keywords(), SynFlow(), density=0.5, example_input=example)
