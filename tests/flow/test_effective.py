"""Compares weights on a path with a graph of (channel, position) units that is walked by edges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import count, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synflow_pl import Masks, diagnose
from synflow_pl.flow import Connectivity, example_of, is_connected
from synflow_pl.prunable_parameters import prunable

Weight = tuple[str, tuple[int, ...]]


class Graph:
    """A graph of units with numbers; an edge leads through a weight or through none."""

    def __init__(self) -> None:
        self.fresh = count()
        self.edges: list[tuple[int, int, Weight | None]] = []

    def units(self, *shape: int) -> Tensor:
        numbers = torch.empty(shape, dtype=torch.long)
        for at in product(*map(range, shape)):
            numbers[at] = next(self.fresh)
        return numbers

    def linear(self, name: str, layer: nn.Linear, read: Tensor) -> Tensor:
        made = self.units(layer.out_features)
        for o, i in product(range(layer.out_features), range(layer.in_features)):
            self.edges.append((int(read[i]), int(made[o]), (f"{name}.weight", (o, i))))
        return made

    def windows(
        self, kernel: int, stride: int, padding: int, read: Tensor
    ) -> Iterable[tuple[tuple[int, ...], tuple[int, ...]]]:
        height, width = read.shape[1:]
        size = [(edge + 2 * padding - kernel) // stride + 1 for edge in (height, width)]
        for y, x, ky, kx in product(range(size[0]), range(size[1]), range(kernel), range(kernel)):
            row, column = y * stride + ky - padding, x * stride + kx - padding
            if 0 <= row < height and 0 <= column < width:
                yield (y, x, ky, kx), (row, column)

    def convolution(self, name: str, layer: nn.Conv2d, read: Tensor) -> Tensor:
        kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
        size = [(edge + 2 * padding - kernel) // stride + 1 for edge in read.shape[1:]]
        made = self.units(layer.out_channels, *size)
        inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        for ((y, x, ky, kx), at), o, i in product(
            list(self.windows(kernel, stride, padding, read)),
            range(layer.out_channels),
            range(inputs),
        ):
            source = read[(o // outputs * inputs + i, *at)]
            self.edges.append((int(source), int(made[o, y, x]), (f"{name}.weight", (o, i, ky, kx))))
        return made

    def pool(self, kernel: int, stride: int, padding: int, read: Tensor) -> Tensor:
        size = [(edge + 2 * padding - kernel) // stride + 1 for edge in read.shape[1:]]
        made = self.units(read.shape[0], *size)
        for ((y, x, _, _), at), c in product(
            list(self.windows(kernel, stride, padding, read)), range(read.shape[0])
        ):
            self.edges.append((int(read[(c, *at)]), int(made[c, y, x]), None))
        return made

    def sum(self, left: Tensor, right: Tensor) -> Tensor:
        made = self.units(*left.shape)
        for operand in (left, right):
            self.edges += [
                (int(a), int(b), None)
                for a, b in zip(operand.flatten(), made.flatten(), strict=True)
            ]
        return made

    def effective(self, sources: Tensor, sinks: Tensor, masks: Masks) -> dict[str, Tensor]:
        kept = [(a, b, w) for a, b, w in self.edges if w is None or bool(masks[w[0]][w[1]])]
        ahead = self._reached(
            {int(unit) for unit in sources.flatten()}, ((a, b) for a, b, _ in kept)
        )
        behind = self._reached(
            {int(unit) for unit in sinks.flatten()}, ((b, a) for a, b, _ in kept)
        )
        on = {name: torch.zeros_like(masks[name]) for name in masks}
        for a, b, w in kept:
            if w is not None and a in ahead and b in behind:
                on[w[0]][w[1]] = True
        return on

    @staticmethod
    def _reached(start: set[int], pairs: Iterable[tuple[int, int]]) -> set[int]:
        onward = defaultdict(list)
        for a, b in pairs:
            onward[a].append(b)
        reached, waiting = set(start), list(start)
        while waiting:
            for unit in onward[waiting.pop()]:
                if unit not in reached:
                    reached.add(unit)
                    waiting.append(unit)
        return reached


class Net(nn.Module):
    """A small network with strides, padding, groups, pooling, a shortcut and a branch."""

    def __init__(self, choose: Any) -> None:
        super().__init__()
        self.size = choose([5, 6])
        self.first = nn.Conv2d(
            1, 2, 3, stride=choose([1, 2]), padding=choose([0, 1]), bias=choose([True, False])
        )
        self.norm = nn.BatchNorm2d(2)
        self.pooled = choose(["none", "max", "max padded", "average"])
        self.grouped = nn.Conv2d(2, 4, choose([1, 3]), padding=1, groups=2)
        self.residual = choose(["none", "identity", "projection"])
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.projection = nn.Conv2d(4, 4, 1, bias=False) if self.residual == "projection" else None
        self.branch = nn.Conv2d(4, 1, 1) if choose([True, False]) else None
        self.head = nn.LazyLinear(3)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(images)))
        if self.pooled.startswith("max"):
            x = nn.functional.max_pool2d(x, 2, padding=int("padded" in self.pooled))
        elif self.pooled == "average":
            x = nn.functional.avg_pool2d(x, 2)
        x = torch.relu(self.grouped(x))
        y = self.second(x)
        if self.residual != "none":
            y = y + (x if self.projection is None else self.projection(x))
        x = torch.relu(y)
        if self.branch is not None:
            x = torch.cat([x, self.branch(x)], 1)
        return self.head(x.flatten(1))

    def walked(self, masks: Masks) -> dict[str, Tensor]:
        graph = Graph()
        sources = x = graph.units(1, self.size, self.size)
        x = graph.convolution("first", self.first, x)
        if self.pooled != "none":
            x = graph.pool(2, 2, int("padded" in self.pooled), x)
        x = graph.convolution("grouped", self.grouped, x)
        y = graph.convolution("second", self.second, x)
        if self.residual != "none":
            y = graph.sum(
                y,
                x
                if self.projection is None
                else graph.convolution("projection", self.projection, x),
            )
        x = y
        if self.branch is not None:
            x = torch.cat([x, graph.convolution("branch", self.branch, x)])
        return graph.effective(sources, graph.linear("head", self.head, x.flatten()), masks)


@pytest.mark.parametrize("seed", range(40))
def test_effective_weights_are_those_that_a_walk_over_units_reaches(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def choose(options: list[Any]) -> Any:
        return options[int(torch.randint(len(options), (), generator=generator))]

    network = Net(choose)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 1, network.size, network.size))
    density = choose([0.1, 0.2, 0.4])
    masks = Masks(
        {
            name: torch.rand(p.shape, generator=generator) < density
            for name, p in prunable(network).items()
        }
    )
    expected = network.walked(masks)
    paths = Connectivity(network, example_of(network, (1, network.size, network.size), None))
    actual = paths.effective(masks)
    assert all(torch.equal(actual[name], on) for name, on in expected.items())
    assert paths.is_connected(masks) == any(bool(on.any()) for on in expected.values())


class Tiny(nn.Module):
    """A network with so few paths that all can be listed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.shape = kind, (2, 2, 2) if kind == "grouped" else (3,)
        self.first = nn.Conv2d(2, 4, 1, groups=2) if kind == "grouped" else nn.Linear(3, 3)
        self.second = (
            nn.Conv2d(4, 2, 2, padding=1, stride=2) if kind == "grouped" else nn.Linear(3, 3)
        )
        self.branch = nn.Linear(3, 2) if kind == "branching" else None
        self.head = nn.Linear({"grouped": 8, "branching": 5}.get(kind, 3), 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = self.second(x)
        if self.kind == "residual":
            y = y + x
        if self.branch is not None:
            y = torch.cat([y, self.branch(x)], 1)
        return self.head(y.flatten(1))

    def graph(self) -> tuple[Graph, Tensor, Tensor]:
        graph = Graph()
        layer = graph.convolution if self.kind == "grouped" else graph.linear
        sources = graph.units(*self.shape)
        x = layer("first", self.first, sources)
        y = layer("second", self.second, x)
        if self.kind == "residual":
            y = graph.sum(y, x)
        if self.branch is not None:
            y = torch.cat([y, graph.linear("branch", self.branch, x)])
        return graph, sources, graph.linear("head", self.head, y.flatten())


@pytest.mark.parametrize("kind", ["chain", "residual", "branching", "grouped"])
@pytest.mark.parametrize("seed", range(10))
def test_effective_weights_are_those_on_an_enumerated_path(kind: str, seed: int) -> None:
    network, generator = Tiny(kind), torch.Generator().manual_seed(seed)
    masks = Masks(
        {
            name: torch.rand(p.shape, generator=generator) < 0.4
            for name, p in prunable(network).items()
        }
    )
    graph, sources, sinks = network.graph()
    ends = {int(unit) for unit in sinks.flatten()}

    def paths(unit: int, behind: tuple[Weight, ...]) -> Iterable[tuple[Weight, ...]]:
        if unit in ends:
            yield behind
        for a, b, weight in graph.edges:
            if a == unit and (weight is None or bool(masks[weight[0]][weight[1]])):
                yield from paths(b, behind if weight is None else (*behind, weight))

    expected = {name: torch.zeros_like(masks[name]) for name in masks}
    for path in (path for source in sources.flatten() for path in paths(int(source), ())):
        for name, at in path:
            expected[name][at] = True
    actual = Connectivity(network, example_of(network, network.shape, None)).effective(masks)
    assert all(torch.equal(actual[name], on) for name, on in expected.items())


def test_a_path_is_found_beside_any_number_of_others() -> None:
    # Each of 400 layers has one unit separate from sixteen connected ones: 16 ** 400 paths beside a
    # single one, more than float64 can represent.
    network = nn.Sequential(*(nn.Linear(17, 17, bias=False) for _ in range(400)))
    mask = torch.ones(17, 17, dtype=torch.bool)
    mask[0, 1:] = mask[1:, 0] = False
    masks = Masks({f"{index}.weight": mask for index in range(400)})
    assert diagnose(network, masks, input_shape=(17,)).effective == masks.kept == 400 * 257
    only = torch.zeros_like(mask)
    only[0, 0] = True
    assert is_connected(network, Masks({**masks, "399.weight": only}), (torch.ones(1, 17),))


def test_density_and_effective_density_are_reported_separately() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    # The second unit has two kept inputs and no kept reader.
    masks = Masks(
        {
            "0.weight": torch.tensor([[True, False], [True, True]]),
            "2.weight": torch.tensor([[True, False]]),
        }
    )
    diagnosis = diagnose(network, masks, input_shape=(2,))
    assert (diagnosis.kept, diagnosis.effective, diagnosis.total) == (4, 2, 6)
    assert (diagnosis.density, diagnosis.effective_density) == (4 / 6, 2 / 6)
    assert [layer.effective for layer in diagnosis.layers] == [1, 1]
    (whole,) = (line.split() for line in diagnosis.table().splitlines() if line.startswith("all"))
    assert whole[:4] == ["all", "6", "4", "2"]


def attention(value: bool) -> Masks:
    projections = torch.zeros(6, 2, dtype=torch.bool)
    projections[0, 0] = projections[3, 1] = True  # one query, one key
    projections[4, 0] = value
    return Masks(
        {"in_proj_weight": projections, "out_proj.weight": torch.ones(2, 2, dtype=torch.bool)}
    )


class Attend(nn.MultiheadAttention):
    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(tokens, tokens, tokens, need_weights=False)[0]


def test_queries_and_keys_are_effective_if_the_values_are_on_a_path() -> None:
    network = Attend(2, 1, batch_first=True)
    diagnosis = diagnose(network, attention(value=True), input_shape=(3, 2))
    # One query, one key, one value, and the two weights of the output projection that read the
    # value.
    assert [layer.effective for layer in diagnosis.layers] == [3, 2]
    dead = diagnose(network, attention(value=False), input_shape=(3, 2))
    assert (dead.alive, dead.effective) == (False, 0)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.signal, self.gate = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.signal(x) * torch.sigmoid(self.gate(x))


@pytest.mark.parametrize("bias", [True, False])
def test_a_gate_is_effective_where_the_gated_value_is_nonzero(bias: bool) -> None:
    masks = Masks(
        {
            "signal.weight": torch.tensor([[True, False], [False, False]]),
            "gate.weight": torch.ones(2, 2, dtype=torch.bool),
        }
    )
    network = Gated()
    if not bias:
        nn.init.zeros_(network.signal.bias)
    diagnosis = diagnose(network, masks, input_shape=(2,))
    # The gate of the second unit multiplies only the bias of the signal, or zero.
    assert [layer.effective for layer in diagnosis.layers] == [1, 4 if bias else 2]


@pytest.mark.parametrize(
    "choice",
    [
        lambda x: x.amax(2, keepdim=True),
        lambda x: x.max(2).values.unsqueeze(2),
        lambda x: x.topk(2, 2).values,
        lambda x: x.sort(2, descending=True).values[:, :, :1],
        lambda x: nn.functional.adaptive_max_pool1d(x, 1),
        lambda x: nn.functional.max_pool1d(x, 3),
        lambda x: nn.functional.max_pool1d(x, 2, dilation=2),
        lambda x: torch.maximum(x[:, :, :1], torch.minimum(x[:, :, 1:2], x[:, :, 2:])),
    ],
)
def test_an_operation_that_selects_entries_connects_all_of_them(choice: Any) -> None:
    class Choose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return choice(self.layer(x))

    network = Choose()
    masks = Masks(
        {"layer.weight": torch.tensor([[False] * 3, [False] * 3, [True] * 3])}
    )  # only the last position has kept weights
    diagnosis = diagnose(network, masks, input_shape=(2, 3))
    assert diagnosis.effective == 3
