"""Replay: recomputes values of a traced graph with other parameters; finds computed weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from synflow_pl.graph import operators
from synflow_pl.graph.trace import Graph, Operation, is_number

__all__ = ["Replay", "computed_weights", "weights_nonzero_after_masking", "without_zeros"]


class Replay:
    """Recomputes some values of a graph with other parameters.

    Values whose shape depends on data keep their traced tensors. Only the traced tensors that the
    computation starts from are stored.

    Args:
        graph: Graph of the network, made by :func:`synflow_pl.flow.trace`.
        wanted: Numbers of the values to compute.
    """

    def __init__(self, graph: Graph, wanted: Collection[int]) -> None:
        self._wanted = frozenset(wanted)
        needed = set(wanted)
        self._operations: list[Operation] = []
        for operation in reversed(graph.operations):
            made = {output.number for output in operation.results}
            if made & needed and not _fixed(operation):
                needed.update(value.number for value in operation.reads)
                self._operations.append(operation)
        self._operations.reverse()
        made = {output.number for x in self._operations for output in x.results}
        self._given = {number: graph.tensors[number] for number in needed - made}
        self._names = {
            number: name for number, name in graph.parameters.items() if number in self._given
        }

    @property
    def names(self) -> frozenset[str]:
        """Return the names of the parameters and buffers that the values depend on."""
        return frozenset(self._names.values())

    @torch.no_grad()
    def values(self, parameters: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """Return the wanted values by number.

        Args:
            parameters: Replacements of parameters and buffers, by name; all others keep their
                traced tensors.
        """
        with torch.random.fork_rng(devices=[]):
            return self._run(parameters)

    def _run(self, parameters: Mapping[str, Tensor]) -> dict[int, Tensor]:
        values = dict(self._given)
        for number, name in self._names.items():
            if name in parameters:
                values[number] = parameters[name].to(values[number])
        last = {
            value.number: index
            for index, operation in enumerate(self._operations)
            for value in operation.reads
        }
        for index, operation in enumerate(self._operations):
            values.update(operation.run(lambda value: values[value.number]))
            for number in {value.number for value in operation.reads} - self._wanted:
                if last[number] == index:
                    del values[number]
        return {number: values[number] for number in self._wanted}


def _fixed(operation: Operation) -> bool:
    """Return whether an operation's outputs keep their traced tensors."""
    tags = operation.target.tags
    return torch.Tag.dynamic_output_shape in tags or operation.target._schema.is_mutable


def computed_weights(graph: Graph, weights: Collection[str]) -> dict[int, tuple[str, ...]]:
    """Return the values computed from weights alone that act on a signal.

    Values whose entries are merely moved entries of a weight are not among them.

    Args:
        graph: Graph of the network, made by :func:`synflow_pl.flow.trace`.
        weights: Names of the prunable parameters.

    Returns:
        Names of the weights that each value is computed from, by the number of the value.
    """
    signals = {value.number for value in graph.inputs}
    made_of: dict[int, tuple[str, ...]] = {
        number: (name,) for number, name in graph.parameters.items() if name in weights
    }
    computed: set[int] = set()
    weights_of: dict[int, tuple[str, ...]] = {}
    for operation in graph.operations:
        read = [value.number for value in operation.reads]
        if any(number in signals for number in read):
            signals.update(output.number for output in operation.results)
            weights_of.update(
                (number, made_of[number])
                for number in read
                if number in computed and is_number(graph.tensors[number])
            )
            continue
        if not any(number in made_of for number in read):
            continue
        names = tuple(dict.fromkeys(name for number in read for name in made_of.get(number, ())))
        more = operation.name not in operators.MOVES or any(number in computed for number in read)
        for output in operation.results:
            if output.number not in made_of:
                made_of[output.number] = names
                if more:
                    computed.add(output.number)
    return weights_of


def without_zeros(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace the zeros of parameters by random numbers.

    Zeros in a computed weight then come from a mask alone.
    """
    generator = torch.Generator().manual_seed(0)
    drawn: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        value = parameter.detach()
        if not bool((value == 0).any()):
            drawn[name] = value
            continue
        scale = float(value.abs().float().mean()) or 1.0
        other = (0.5 + torch.rand(value.shape, generator=generator)) * scale
        drawn[name] = torch.where(value == 0, other.to(value), value)
    return drawn


def weights_nonzero_after_masking(
    graph: Graph,
    weights: Collection[str],
    parameters: Mapping[str, Tensor],
    used: Collection[int] | None = None,
) -> frozenset[str]:
    """Return the names of the weights whose pruned entries are not zero where they are used.

    An example are standardised weights, from which a mean is subtracted.

    Args:
        graph: Graph of the network, made by :func:`synflow_pl.flow.trace`.
        weights: Names of the prunable parameters.
        parameters: All parameters, by name.
        used: Numbers of the values to check; ``None`` checks all that act on a signal.
    """
    weights_of = {
        number: names
        for number, names in computed_weights(graph, weights).items()
        if used is None or number in used
    }
    if not weights_of:
        return frozenset()
    replay = Replay(graph, weights_of)
    # A weight that acts through an operation that cannot be recomputed (an index, say) is not
    # checked.
    masked = {name for names in weights_of.values() for name in names} & replay.names
    # A checkerboard prunes half of the entries of any group.
    checks = {name: _checkerboard(parameters[name]) for name in masked}
    drawn = without_zeros({name: parameters[name] for name in replay.names if name in parameters})
    values = replay.values(drawn | {name: drawn[name] * check for name, check in checks.items()})
    names_found: set[str] = set()
    for number, names in weights_of.items():
        value = values[number]
        if not masked.issuperset(names) or value.numel() != sum(
            parameters[name].numel() for name in names
        ):
            continue
        removed = sum(int((checks[name] == 0).count_nonzero()) for name in names)
        if int((value == 0).count_nonzero()) < removed:
            names_found.update(names)
    return frozenset(names_found)


def _checkerboard(weight: Tensor) -> Tensor:
    rows = torch.arange(weight.shape[0], device=weight.device)
    rest = torch.arange(weight[0].numel(), device=weight.device)
    return ((rows[:, None] + rest) % 2 == 0).to(weight.dtype).view(weight.shape)
