"""Operators of one class are translated alike, whichever of them a network calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synflow_pl.flow import LinearNetwork, example_of, linearise
from synflow_pl.flow.builder import Builder
from synflow_pl.flow.rules import apply_rule
from synflow_pl.graph import operators
from synflow_pl.graph.trace import Graph, Operation, Value

aten = torch.ops.aten


class Branches(nn.Module):
    """Two layers that read the same input, and a function of their outputs."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], units: int = 2) -> None:
        super().__init__()
        self.left, self.right = (nn.Linear(2, units, bias=False) for _ in range(2))
        self.function = function
        nn.init.constant_(self.left.weight, 3.0)
        nn.init.constant_(self.right.weight, 5.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.left(x), self.right(x))


def linear_network_of(
    function: Callable[[Tensor, Tensor], Tensor], units: int = 2
) -> LinearNetwork:
    network = Branches(function, units)
    linear_network = linearise(network, example_of(network, (2,), None))
    linear_network._cut_before = {}
    return linear_network


@pytest.mark.parametrize("name", sorted(operators.BATCH_NORMS | operators.TRAINING_BATCH_NORMS))
def test_every_batch_norm_is_its_gain_divided_by_the_running_deviation(name: str) -> None:
    # Some of these kernels run on a GPU only; the rule reads the schema, not the result.
    packet = getattr(aten, name)
    target = getattr(packet, packet.overloads()[0])
    given = {
        "input": Value(0),
        "weight": Value(1),
        "bias": Value(2),
        "running_mean": Value(3),
        "running_var": Value(4),
        "training": False,
        "eps": 1.0,
        "epsilon": 1.0,
    }
    args = [
        given.get(argument.name) for argument in target._schema.arguments if not argument.kwarg_only
    ]
    signal, gain, statistic = torch.ones(1, 2, 1), torch.tensor([-4.0, 6.0]), torch.full((2,), 3.0)
    graph = Graph(
        (Value(0),),
        {},
        (Value(5),),
        [Operation(target, tuple(args), {}, (Value(5),))],
        [signal, gain, statistic, statistic, statistic, signal],
    )
    builder = Builder(graph, (), ())
    assert builder.visit(graph.operations[0])
    apply_rule(builder, graph.operations[0])
    (node,) = builder.nodes
    assert node.function is torch.mul
    assert builder._constants[node.args[1].number].flatten().tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("resize", "equal"),
    [
        (
            lambda x: F.interpolate(x, size=(3, 5), mode="nearest-exact"),
            lambda x: F.interpolate(x, size=(3, 5)),
        ),
        (lambda x: F.interpolate(x[0], size=7, mode="nearest-exact"), lambda x: 3.5 * x),
        (
            lambda x: F.interpolate(x[None], size=(2, 2, 2), mode="nearest-exact"),
            lambda x: 4 * x,
        ),
        (
            lambda x: F.grid_sample(
                x[None], torch.zeros(1, 1, 1, 4, 3), align_corners=True, mode="nearest"
            ),
            lambda x: 4 * x[..., :1],
        ),
        (lambda x: torch.take(x, torch.tensor([0, 0, 1])), lambda x: 1.5 * x),
    ],
    ids=["exact in 2d", "exact in 1d", "exact in 3d", "grid in 3d", "take"],
)
def test_operations_that_select_entries_are_kept(
    resize: Callable[[Tensor], Tensor], equal: Callable[[Tensor], Tensor]
) -> None:
    def selected(left: Tensor, right: Tensor) -> Tensor:
        return resize(left.view(1, 1, 1, 2))

    actual = linear_network_of(selected)
    expected = linear_network_of(lambda left, right: equal(left.view(1, 1, 1, 2)))
    assert actual.notes == ()
    assert float(actual.flow({})) == pytest.approx(float(expected.flow({})))


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "erfc": torch.erfc,
    "heaviside": lambda x: torch.heaviside(x, torch.ones(())),
    "sgn": torch.sgn,
    "sinc": torch.sinc,
    "atan": torch.atan,
    "rrelu": F.rrelu,
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("swapped", [False, True])
def test_the_signal_behind_a_nonlinearity_is_the_gate(name: str, swapped: bool) -> None:
    def product(left: Tensor, right: Tensor) -> Tensor:
        gate = GATES[name](right)
        return gate * left if swapped else left * gate

    assert linear_network_of(product).weights == {"left.weight"}


def test_transposed_signals_are_gated_alike_whichever_operator_transposes() -> None:
    def gated(turn: Callable[[Tensor], Tensor]) -> frozenset[str]:
        layer = nn.Linear(2, 2)

        def product(left: Tensor, right: Tensor) -> Tensor:
            return turn(layer(left)) * turn(left)

        return linear_network_of(product).weights

    by_dimensions = gated(lambda x: x.transpose(0, 1))
    assert gated(lambda x: x.t()) == by_dimensions == {"left.weight"}


def test_parts_of_a_split_are_gated_alike_whichever_operator_splits() -> None:
    def weights(split: Callable[..., tuple[Tensor, ...]]) -> frozenset[str]:
        def product(left: Tensor, right: Tensor) -> Tensor:
            return split(left.relu(), 2, -1)[0] * right[:, :2]

        return linear_network_of(product, 4).weights

    assert weights(torch.unsafe_chunk) == weights(torch.chunk) == {"left.weight"}


def test_a_table_that_is_read_by_index_starts_the_flow_whichever_operator_reads_it() -> None:
    class Words(nn.Module):
        def __init__(self, index: Callable[..., Tensor]) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(3, 2), nn.Linear(2, 1)
            self.index = index

        def forward(self, words: Tensor) -> Tensor:
            return self.layer(self.index(self.table.weight, [words]))

    torch.manual_seed(0)
    words = (torch.tensor([[0, 2]]),)
    plain, unsafe = (
        linearise(Words(index), words) for index in (aten.index.Tensor, aten._unsafe_index.Tensor)
    )
    assert plain.weights == unsafe.weights
