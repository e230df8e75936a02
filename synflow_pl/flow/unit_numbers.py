"""Numbers of the units and inputs of weights, read from the products in which they act."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from synflow_pl.flow.replay import Replay
from synflow_pl.graph import operators
from synflow_pl.graph.operation import values_in
from synflow_pl.graph.trace import Graph, Operation

__all__ = ["number_units"]

_ROWS = ("self", "mat1", "mat", "batch1", "vec")
"""Names of the operands of matrix products whose rows give units; of others, columns do.

A vector counts as a matrix of one row.
"""

_DIGITS = 256
"""Whole numbers below it are exact in every floating-point format."""


def number_units(graph: Graph, names: Collection[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the number of the unit and of the input of each entry of weights.

    They are read from the matrix product or convolution in which a weight acts. A stack of matrices
    has units and inputs of its own in each matrix. Weights that act elsewhere, and weights that are
    computed from a parameter, are left out.

    Args:
        graph: Graph of the network, made by :func:`synflow_pl.flow.trace`.
        names: Names of weights.

    Returns:
        By name, the numbers of units and those of inputs, each an int64 tensor of the weight's
        shape. Numbers start at 0 without gaps.

    Example:
        >>> from torch import nn
        >>> from synflow_pl.flow import trace
        >>> class Rows(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.ones(2, 3))
        ...
        ...     def forward(self, x):
        ...         return x @ self.weight
        >>> units, inputs = number_units(trace(Rows(), (torch.ones(1, 2),)), ["weight"])["weight"]
        >>> units.tolist(), inputs.tolist()
        ([[0, 1, 2], [0, 1, 2]], [[0, 0, 0], [1, 1, 1]])
    """
    weights = {
        name: graph.tensors[number] for number, name in graph.parameters.items() if name in names
    }
    moved = {number: name for number, name in graph.parameters.items() if name in weights}
    found = {name: _Numbers(weight) for name, weight in weights.items()}
    for operation in graph.operations:
        read = [value.number for value in operation.reads]
        if len(read) == 1 and read[0] in moved and operation.name in operators.MOVES:
            moved.update((output.number, moved[read[0]]) for output in operation.results)
        for number in moved.keys() & set(read):
            numbers = _of_operand(operation, number, graph.tensors[number].shape)
            if numbers is not None:
                name = moved[number]
                entries = _entries(graph, name, weights[name], number)
                found[name].add(entries, *numbers, signal=(*(set(read) - {number}),))
    return {name: numbers.tensors() for name, numbers in found.items() if numbers.complete()}


class _Numbers:
    """Numbers of the units and inputs of one weight, collected from the parts of it that act.

    Args:
        weight: The weight.
    """

    def __init__(self, weight: Tensor) -> None:
        self._shape = weight.shape
        self._units = torch.full((weight.numel(),), -1)
        self._inputs = torch.full((weight.numel(),), -1)
        self._first_input: dict[tuple[int, ...], int] = {}

    def add(
        self, entries: Tensor, units: Tensor, inputs: Tensor, *, signal: tuple[int, ...]
    ) -> None:
        """Number the entries of one operand, unless they have numbers from an earlier product.

        Args:
            entries: Entry of the weight for each entry of the operand.
            units: Their numbers among the units of the product.
            inputs: Their numbers among its inputs.
            signal: Values that the product reads; parts that read the same have the same inputs.
        """
        entries = entries.flatten()
        if bool((self._units[entries] >= 0).any()):
            return
        first = self._first_input.setdefault(signal, int(self._inputs.max()) + 1)
        for own, numbers, offset in (
            (self._units, units, int(self._units.max()) + 1),
            (self._inputs, inputs, first),
        ):
            # An entry that occurs several times, as in a matrix that is expanded to a stack, has
            # the number of its first occurrence.
            own.scatter_reduce_(0, entries, numbers.flatten() + offset, "amin", include_self=False)

    def complete(self) -> bool:
        return bool((self._units >= 0).all())

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return the numbers in the weight's shape, without gaps."""
        units, inputs = (
            numbers.unique(return_inverse=True)[1].view(self._shape)
            for numbers in (self._units, self._inputs)
        )
        return units, inputs


def _of_operand(
    operation: Operation, number: int, shape: torch.Size
) -> tuple[Tensor, Tensor] | None:
    """Return the unit and the input of each entry of an operand, if it is a weight of a product."""
    arguments = operation.bound()
    of = {key for key, value in arguments.items() if number in _numbers_in(value)}
    if operation.name == "convolution" and of == {"weight"}:
        groups = arguments["groups"]
        rows = torch.arange(shape[0])
        columns = torch.arange(shape[1]) + (rows // (shape[0] // groups))[:, None] * shape[1]
        first = rows[:, None].expand(*shape[:2])
        pair = (columns, first) if arguments["transposed"] else (first, columns)
        positions = [1] * (len(shape) - 2)
        units, inputs = (x.reshape(*shape[:2], *positions).expand(shape) for x in pair)
        return units, inputs
    added = "self" if operation.name.startswith(("add", "badd")) else None
    if operation.name not in operators.MATRIX_PRODUCTS or len(of) != 1 or added in of:
        return None
    *stack, rows_, columns_ = shape if len(shape) > 1 else (1, *shape)
    matrix = torch.arange(stack[0] if stack else 1).view(-1, 1, 1)
    by_row = (matrix * rows_ + torch.arange(rows_)[:, None]).expand(-1, rows_, columns_)
    by_column = (matrix * columns_ + torch.arange(columns_)).expand(-1, rows_, columns_)
    return (by_row, by_column) if of & set(_ROWS) else (by_column, by_row)


def _numbers_in(value: object) -> set[int]:
    return {value.number for value in values_in([value])}


def _entries(graph: Graph, name: str, weight: Tensor, number: int) -> Tensor:
    """Return for each entry of a moved weight the number of the entry of the parameter."""
    entries = torch.arange(weight.numel(), device=weight.device).view(weight.shape)
    replay = Replay(graph, [number])
    moved, power = torch.zeros(graph.tensors[number].shape, dtype=torch.int64), 1
    while power < weight.numel():
        digits = replay.values({name: entries // power % _DIGITS})[number]
        moved += digits.to("cpu", torch.int64) * power
        power *= _DIGITS
    return moved
