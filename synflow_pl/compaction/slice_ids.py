"""Ids of parameter slices, carried along the dimensions of the values of a graph.

The rules of operations (:mod:`synflow_pl.compaction.layer_rules`,
:mod:`synflow_pl.compaction.shape_rules`) read and set them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from synflow_pl.graph.trace import Graph, Operation, Value

__all__ = ["Axis", "Contraction", "Heads", "Rule", "SliceIds", "representatives"]

Axis = Tensor | None
"""Ids of the entries along a dimension, (size,) int64; ``None`` for a dimension of fixed size."""


@dataclass(frozen=True)
class Contraction:
    """An operation in which the rows of a weight read a signal along the weight's columns.

    Attributes:
        index: Position of the operation in the graph.
        signal: The signal.
        weight: The weight.
        rows: Ids of the rows of the weight.
        columns: Ids of the columns of the weight.
    """

    index: int
    signal: Value
    weight: Value
    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Heads:
    """Channels that an operation splits into the heads of an attention.

    Attributes:
        module: Name of the module that runs the operation.
        ids: An id of each head, (heads,) int64.
        channels: Number of channels of one head.
    """

    module: str
    ids: Tensor
    channels: int


class SliceIds:
    """Ids of all parameter slices of a network, and the relations between them.

    Args:
        recording: Graph of the network.
        fixed: Names of modules whose forward pass fixes the number of groups of their grouped
            convolutions.
        heads: Operations whose output has the heads of an attention, as
            :func:`synflow_pl.compaction.attention_heads.find_heads` returns them.

    Attributes:
        splits: Where channels are split into heads.
        axes: Ids along each dimension of a value, by the value's number.
        pinned: Ids that must stay, each with the reason.
        contractions: Contractions in the order of the graph, without those of grouped
            convolutions, where the inputs and outputs of a group are joined.
        notes: Remarks, each a whole sentence without a full stop.
        count: Number of ids.
        flow: Numbers of the values that depend on the input of the network.
        index: Position in the graph of the operation whose rule is applied.
    """

    def __init__(
        self,
        recording: Graph,
        fixed: Collection[str],
        heads: Mapping[int, frozenset[int]] = MappingProxyType({}),
    ) -> None:
        self.recording, self.fixed, self.heads = recording, fixed, heads
        self.splits: list[Heads] = []
        self.axes: dict[int, list[Axis]] = {}
        self.pinned: list[tuple[Tensor, str]] = []
        self.contractions: list[Contraction] = []
        self.notes: set[str] = set()
        self.count = self.index = 0
        self._joined: list[tuple[Tensor, Tensor]] = []
        for number in recording.parameters:
            self.axes[number] = [self.fresh(size) for size in recording.tensors[number].shape]
        self.flow = {value.number for value in recording.inputs}

    def of(self, value: Value) -> list[Axis]:
        """Return the ids along each dimension of a value."""
        return self.axes.get(value.number) or [None] * self.tensor(value).dim()

    def tensor(self, value: Value) -> Tensor:
        """Return the recorded tensor of a value, of which only shape and dtype are used."""
        return self.recording.tensors[value.number]

    def output_shape(self, operation: Operation) -> torch.Size:
        """Return the shape of the first output of an operation, which must be a tensor."""
        value = operation.outputs[0]
        assert value is not None
        return self.tensor(value).shape

    def set(self, operation: Operation, axes: Sequence[Axis]) -> None:
        """Set the ids along each dimension of the first output of an operation."""
        value = operation.outputs[0]
        assert value is not None
        self.axes[value.number] = list(axes)

    def set_all(self, operation: Operation, axes: Sequence[Axis]) -> None:
        """Set the ids along each dimension of all outputs of an operation, which have one shape."""
        for value in operation.results:
            self.axes[value.number] = list(axes)

    def pin(self, axes: Sequence[Axis], why: str) -> None:
        """Record that the ids of the axes must stay, with the reason ``why``."""
        self.pinned += [(axis, why) for axis in axes if axis is not None]

    def pin_dimension(self, value: Value, dim: int, why: str) -> list[Axis]:
        """Pin the ids along a dimension of a value, and return its axes without them."""
        axes = list(self.of(value))
        self.pin([axes[dim]], why)
        axes[dim] = None
        return axes

    def pin_reads(self, operation: Operation) -> None:
        """Pin the ids of all values that an operation reads."""
        for value in operation.reads:
            self.pin(self.of(value), f"read by {operation.name}")

    def join(self, *axes: Axis) -> Axis:
        """Join axes that agree entry by entry, and return the joined axis.

        If an axis has a fixed size, the others are pinned.
        """
        with_ids = [axis for axis in axes if axis is not None]
        if len(with_ids) < len(axes) and any(len(axis) > 1 for axis in with_ids):
            self.pin(with_ids, "meets a dimension of fixed size")
        self._joined += [(with_ids[0], other) for other in with_ids[1:]]
        return with_ids[0] if with_ids else None

    def split_heads(self, ids: Tensor) -> None:
        """Join the ids of each head of an attention.

        Args:
            ids: Ids of the channels of each head, (heads, channels) int64.
        """
        self._joined += [(ids[:, 0], channel) for channel in ids.unbind(1)[1:]]
        module = self.recording.operations[self.index].module
        self.splits.append(Heads(module, ids[:, 0], ids.shape[1]))

    def contract(
        self,
        signal: Value,
        weight: Value,
        rows: Axis,
        columns: Axis,
        read: Axis,
    ) -> None:
        """Record a contraction of the current operation.

        Args:
            signal: Signal that the weight reads.
            weight: The weight.
            rows: Axis of the weight's rows.
            columns: Axis of the weight's columns.
            read: Axis of the signal that is contracted with the columns.
        """
        columns = self.join(columns, read)
        if rows is None or columns is None:
            return self.pin([rows, columns], "a weight of fixed size")
        self.contractions.append(Contraction(self.index, signal, weight, rows, columns))

    def fresh(self, size: int) -> Tensor:
        """Return new ids for a dimension."""
        self.count += size
        return torch.arange(self.count - size, self.count)

    def roots(self) -> Tensor:
        """Return a representative of the joined ids of each id, (count,) int64."""
        return representatives(self.count, self._joined)


def representatives(count: int, joined: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the smallest number of the set of each number, (count,) int64.

    Args:
        count: Number of numbers, from 0.
        joined: Pairs of int64 tensors of one size; entries at the same place are in one set.
    """
    parent = list(range(count))

    def find(x: int) -> int:
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for left, right in joined:
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            a, b = find(a), find(b)
            if a != b:
                parent[max(a, b)] = min(a, b)
    return torch.tensor([find(x) for x in range(count)])


Rule = Callable[[SliceIds, Operation], None]
"""Function that sets the ids of the outputs of an operation from those of its inputs."""
