"""Units and inputs of weights are read from the products in which the weights act."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from synflow_pl import Masks, diagnose
from synflow_pl.flow import number_units, trace
from tests.acting_networks import Einsum, Experts, parameter

PRODUCTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "matrix on the right": (lambda x, w: x @ w, (4,), (4, 3)),
    "matrix on the left": (lambda x, w: w @ x.mT, (4,), (3, 4)),
    "matrix and vector": (lambda x, w: w @ x[0], (4,), (3, 4)),
    "vectors of a matrix": (lambda x, w: torch.stack([x @ row for row in w]), (4,), (3, 4)),
    "linear with a bias": (
        lambda x, w: functional.linear(x, w, torch.zeros(3)),
        (4,),
        (3, 4),
    ),
    "one matrix on a sequence": (lambda x, w: torch.einsum("btd,dk->bkt", x, w), (5, 4), (4, 3)),
    "heads from a sequence": (
        lambda x, w: torch.einsum("btd,dhk->bhtk", x, w),
        (5, 4),
        (4, 2, 3),
    ),
    "heads to a sequence": (
        lambda x, w: torch.einsum("bhtk,hko->bto", x, w),
        (2, 5, 3),
        (2, 3, 4),
    ),
    "one matrix per head": (lambda x, w: torch.einsum("bhk,hko->bho", x, w), (2, 3), (2, 3, 4)),
    "one matrix per head, outputs first": (
        lambda x, w: torch.einsum("bhk,hok->bho", x, w),
        (2, 3),
        (2, 4, 3),
    ),
    "added to a stack": (
        lambda x, w: torch.baddbmm(torch.zeros(2, 1, 4), x.transpose(0, 1), w),
        (2, 3),
        (2, 3, 4),
    ),
    "parts of a matrix on the same signal": (
        lambda x, w: torch.cat([functional.linear(x, part).relu() for part in w.chunk(2)], 1),
        (4,),
        (6, 4),
    ),
    "convolution": (lambda x, w: functional.conv2d(x, w), (3, 5, 5), (4, 3, 2, 2)),
    "grouped convolution": (
        lambda x, w: functional.conv2d(x, w, groups=2),
        (4, 5, 5),
        (6, 2, 2, 2),
    ),
    "transposed convolution": (
        lambda x, w: functional.conv_transpose2d(x, w, groups=2),
        (4, 5, 5),
        (4, 3, 2, 2),
    ),
}


class Product(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.product, self.shape, shape = PRODUCTS[name]
        torch.manual_seed(0)
        self.weight = parameter(*shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight)


@pytest.mark.parametrize("name", PRODUCTS)
def test_entries_share_a_unit_or_an_input_where_they_reach_the_same_outputs_or_inputs(
    name: str,
) -> None:
    """Outputs that depend on an entry, and inputs that reach them through it, are derivatives."""
    network = Product(name)
    example = torch.rand(1, *network.shape)
    units, inputs = number_units(trace(network, (example,)), ["weight"])["weight"]
    reached, read = [], []
    for entry in range(network.weight.numel()):
        alone = torch.zeros_like(network.weight).flatten()
        alone[entry] = 1.0
        with torch.no_grad():
            network.weight.copy_(alone.view_as(network.weight))
        x = torch.ones_like(example).requires_grad_()
        outputs = network(x)
        reached.append((outputs != 0).flatten())
        read.append((torch.autograd.grad(outputs.sum(), x)[0] != 0).flatten())
    for numbers, support in ((units, torch.stack(reached)), (inputs, torch.stack(read))):
        overlap = (support.double() @ support.double().T) > 0
        # Positions of a convolution overlap only in part, so the relation is made transitive.
        for _ in range(4):
            overlap = (overlap.double() @ overlap.double()) > 0
        same = numbers.flatten()[:, None] == numbers.flatten()
        assert torch.equal(same, overlap)
        assert sorted(set(numbers.flatten().tolist())) == list(range(int(numbers.max()) + 1))


def test_weights_that_act_in_no_product_or_are_computed_have_no_numbers() -> None:
    class Others(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.scaled, self.gain = (
                nn.Embedding(5, 4),
                parameter(4, 4),
                parameter(1, 4),
            )

        def forward(self, x: Tensor) -> Tensor:
            return (self.words(x) * self.gain) @ (2 * self.scaled)

    network = Others()
    names = [name for name, _ in network.named_parameters()]
    assert number_units(trace(network, (torch.zeros(1, 3, dtype=torch.int64),)), names) == {}


def test_the_numbers_of_a_large_half_precision_weight_are_exact() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(300, 700, dtype=torch.bfloat16))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.t().contiguous().t()

    graph = trace(Rows(), (torch.ones(1, 300, dtype=torch.bfloat16),))
    units, inputs = number_units(graph, ["weight"])["weight"]
    assert torch.equal(units, torch.arange(700).expand(300, 700))
    assert torch.equal(inputs, torch.arange(300)[:, None].expand(300, 700))


def dense(network: nn.Module, names: Iterable[str]) -> Masks:
    return Masks({name: torch.ones_like(network.get_parameter(name)).bool() for name in names})


def test_the_diagnosis_counts_the_units_of_experts_and_heads() -> None:
    torch.manual_seed(0)
    experts, heads = Experts(), Einsum()
    for network, example, counts in (
        (experts, torch.ones(1, 6), {"up": (24, 18), "down": (12, 24)}),
        (heads, torch.ones(1, 5, 6), {"project": (12, 6), "out": (5, 12)}),
    ):
        masks = dense(network, counts)
        layers = {
            layer.name: layer for layer in diagnose(network, masks, example_input=example).layers
        }
        assert {name: (layers[name].units, layers[name].inputs) for name in counts} == counts
        for name, (units, inputs) in counts.items():
            assert (layers[name].living_units, layers[name].living_inputs) == (units, inputs)
    masks = dense(experts, ("up", "down"))
    masks["up"][1] = False
    masks["up"][0, :, 2] = False
    masks["up"][2, 4] = False
    layer = diagnose(experts, masks, example_input=torch.ones(1, 6)).layers[0]
    assert layer.name == "up"
    assert (layer.living_units, layer.living_inputs) == (8 - 1 + 8, 6 + 5)
