"""Groups of parameter slices that can only be removed together.

Every index along every dimension of a parameter gets an id. The ids are propagated through the
operations of a traced graph, and each axis of a value stores the ids of its entries. The output
channels of a convolution have the ids of the weight's rows, a flattened image repeats each
channel's id once per position, and a concatenation concatenates the ids.

- Two axes that must agree entry by entry are *joined*: the columns of a weight and the channels
  that it reads, the terms of a residual sum, a signal and the gain of a BatchNorm.
- An axis whose entries an operation combines is *pinned*, because the result would change if some
  entries were removed: the statistics of a LayerNorm, a softmax, a split in halves.
- An operation without a rule pins everything that it reads, so a missing rule cannot cause a wrong
  removal.

The rules are about ATen operations (:mod:`synflow_pl.graph.trace`); no layer or architecture is
treated specially.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from synflow_pl.graph import operators
from synflow_pl.graph.trace import Graph, Operation, Value

__all__ = ["OUTPUT", "ChannelGroups", "Contraction", "has_rule"]

OUTPUT = "output of the network"
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


class ChannelGroups:
    """The ids of all parameter slices of a network and the relations between them.

    Args:
        recording: Graph of the network.
        whole: Modules that must keep all their slices, by name, with the reason.
        fixed: Names of modules whose forward pass fixes the number of groups of their grouped
            convolutions.

    Attributes:
        axes: Ids along each dimension of a value, by the value's number.
        pinned: Ids that must stay, each with the reason.
        contractions: Contractions in the order of the graph, without those of grouped
            convolutions, where the inputs and outputs of a group are joined.
        notes: Remarks, each a whole sentence without a full stop.
        count: Number of ids.
        flow: Numbers of the values that depend on the input of the network.
    """

    def __init__(
        self,
        recording: Graph,
        whole: Mapping[str, str] = MappingProxyType({}),
        fixed: Collection[str] = (),
    ) -> None:
        self.recording, self.fixed = recording, fixed
        self.axes: dict[int, list[Axis]] = {}
        self.pinned: list[tuple[Tensor, str]] = []
        self.contractions: list[Contraction] = []
        self.notes: set[str] = set()
        self.count = 0
        self._joined: list[tuple[Tensor, Tensor]] = []
        for number in recording.parameters:
            self.axes[number] = [self._fresh(size) for size in recording.tensors[number].shape]
        self.flow = {value.number for value in recording.inputs}
        read = set()
        for index, operation in enumerate(recording.operations):
            reads = {value.number for value in operation.reads}
            read |= reads
            if reads & self.flow:
                self.flow.update(
                    output.number for output in operation.outputs if output is not None
                )
            self._index = index
            _RULES.get(operation.name, _unknown if not _is_pointwise(operation) else _pointwise)(
                self, operation
            )
        for number in recording.parameters.keys() - read:
            self.pin(self.axes[number], "not read in evaluation")
        for value in recording.outputs:
            self.pin(self.of(value), OUTPUT)
        for name, why in whole.items():
            within = [
                operation
                for operation in recording.operations
                if f"{operation.module}.".startswith(f"{name}.")
            ]
            for value in (
                value
                for operation in within
                for value in (*operation.reads, *operation.outputs)
                if value is not None
            ):
                self.pin(self.of(value), why)

    def roots(self) -> Tensor:
        """Return a representative of the joined ids of each id, (count,) int64."""
        parent = list(range(self.count))

        def find(x: int) -> int:
            while parent[x] != x:
                parent[x] = parent[parent[x]]
                x = parent[x]
            return x

        for left, right in self._joined:
            for a, b in zip(left.tolist(), right.tolist(), strict=True):
                a, b = find(a), find(b)
                if a != b:
                    parent[max(a, b)] = min(a, b)
        return torch.tensor([find(x) for x in range(self.count)])

    # -- methods for the rules

    def of(self, value: Value) -> list[Axis]:
        """Return the ids along each dimension of a value."""
        return self.axes.get(value.number) or [None] * self.tensor(value).dim()

    def tensor(self, value: Value) -> Tensor:
        """Return the recorded tensor of a value, of which only shape and dtype are used."""
        return self.recording.tensors[value.number]

    def set(self, operation: Operation, axes: Sequence[Axis], output: int = 0) -> None:
        """Set the ids along each dimension of an output of the operation."""
        value = operation.outputs[output]
        assert value is not None
        self.axes[value.number] = list(axes)

    def pin(self, axes: Sequence[Axis], why: str) -> None:
        """Record that the ids of the axes must stay, with the reason ``why``."""
        self.pinned += [(axis, why) for axis in axes if axis is not None]

    def join(self, *axes: Axis, why: str = "meets a dimension of fixed size") -> Axis:
        """Join axes that agree entry by entry, and return the joined axis.

        If an axis has a fixed size, the others are pinned with the reason ``why``.
        """
        with_ids = [axis for axis in axes if axis is not None]
        if len(with_ids) < len(axes) and any(len(axis) > 1 for axis in with_ids):
            self.pin(with_ids, why)
        self._joined += [(with_ids[0], other) for other in with_ids[1:]]
        return with_ids[0] if with_ids else None

    def contract(
        self,
        operation: Operation,
        signal: Value,
        weight: Value,
        rows: Axis,
        columns: Axis,
        read: Axis,
    ) -> None:
        """Record a contraction of the current operation.

        Args:
            operation: The operation.
            signal: Signal that the weight reads.
            weight: The weight.
            rows: Axis of the weight's rows.
            columns: Axis of the weight's columns.
            read: Axis of the signal that is contracted with the columns.
        """
        columns = self.join(columns, read)
        if rows is None or columns is None:
            return self.pin([rows, columns], "a weight of fixed size")
        self.contractions.append(Contraction(self._index, signal, weight, rows, columns))

    def _fresh(self, size: int) -> Tensor:
        self.count += size
        return torch.arange(self.count - size, self.count)


Rule = Callable[[ChannelGroups, Operation], None]


def has_rule(operation: Operation) -> bool:
    """Return whether there is a rule for the operation."""
    return operation.name in _RULES or _is_pointwise(operation)


# -- rules


def _is_pointwise(operation: Operation) -> bool:
    return (
        torch.Tag.pointwise in operation.target.tags
        or operation.name in operators.POINTWISE_WITHOUT_TAG
    )


def _unknown(ids: ChannelGroups, operation: Operation) -> None:
    for value in operation.reads:
        ids.pin(ids.of(value), f"read by {operation.name}")


def _pointwise(ids: ChannelGroups, operation: Operation) -> None:
    output = operation.outputs[0]
    if output is None:  # a comparison of whole tensors returns a Python number
        return _unknown(ids, operation)
    shape = ids.tensor(output).shape
    axes: list[Axis] = []
    for place in range(-len(shape), 0):
        meeting = []
        for value in operation.reads:
            if ids.tensor(value).dim() < -place:
                continue
            size, axis = ids.tensor(value).shape[place], ids.of(value)[place]
            if size == shape[place] and (axis is not None or size > 1):
                meeting.append(axis)
            else:
                ids.pin([axis], "spread over a dimension")
        axes.append(ids.join(*meeting))
    for index, result in enumerate(operation.outputs):
        if result is not None and ids.tensor(result).shape == shape:
            ids.set(operation, axes, index)


def _convolution(ids: ChannelGroups, operation: Operation) -> None:
    signal, weight, bias, _, _, _, transposed, _, groups = operation.args[:9]
    batch, channels, *_ = ids.of(signal)
    first, second, *kernel = ids.of(weight)
    if weight.number in ids.flow or batch is not None:
        return _unknown(ids, operation)
    ids.pin(kernel, "the extent of a kernel")
    if groups > 1:
        is_fixed = transposed or operation.module in ids.fixed
        rows = _groups(ids, groups, channels, first, second, is_fixed)
    else:
        rows, columns = (second, first) if transposed else (first, second)
        ids.contract(operation, signal, weight, rows, columns, channels)
    if bias is not None:
        ids.join(ids.of(bias)[0], rows)
    ids.set(operation, [None, rows, *[None] * len(kernel)])


def _groups(
    ids: ChannelGroups, groups: int, channels: Axis, first: Axis, second: Axis, is_fixed: bool
) -> Axis:
    """Join the inputs and outputs of each group of a convolution, so that all groups keep one size.

    Returns:
        The axis of the output channels.
    """
    # A kernel that is computed or constant may have no rows that can be removed.
    if is_fixed or channels is None or first is None:
        ids.pin([channels, first, second], "a grouped convolution of fixed size")
        return None
    ids.pin([second], "the size of a group")
    if len(channels) > groups:
        ids.notes.add(
            "of a grouped convolution with several channels to a group, only whole groups can go"
        )
    for inputs, rows in zip(channels.chunk(groups), first.chunk(groups), strict=True):
        whole = torch.cat([inputs, rows])
        ids.join(whole[:-1], whole[1:])
    return first


def _product(ids: ChannelGroups, operation: Operation) -> None:
    bias = operation.args[0] if operation.name == "addmm" else None
    signal, weight = operation.args[-2:]
    if weight.number in ids.flow:
        return _unknown(ids, operation)
    batch, read = ids.of(signal)
    columns, rows = ids.of(weight)
    ids.contract(operation, signal, weight, rows, columns, read)
    if bias is not None:
        ids.join(ids.of(bias)[-1], rows)
    ids.set(operation, [batch, rows])


def _batch_norm(ids: ChannelGroups, operation: Operation) -> None:
    arguments = operation.bound()
    signal = ids.of(arguments["input"])
    of_channels = [
        ids.of(arguments[name])[0]
        for name in ("weight", "bias", "running_mean", "running_var")
        if arguments.get(name) is not None
    ]
    channels = ids.join(signal[1], *of_channels)
    if arguments.get("training") or arguments.get("running_mean") is None:
        ids.pin([axis for place, axis in enumerate(signal) if place != 1], "a batch's statistics")
    ids.set(operation, [signal[0], channels, *signal[2:]])


def _layer_norm(ids: ChannelGroups, operation: Operation) -> None:
    arguments = operation.bound()
    signal, count = ids.of(arguments["input"]), len(arguments["normalized_shape"])
    ids.pin(signal[-count:], "LayerNorm's statistics, which would change")
    for name in ("weight", "bias"):
        if arguments.get(name) is not None:
            ids.pin(ids.of(arguments[name]), "LayerNorm's statistics, which would change")
    ids.set(operation, [*signal[:-count], *[None] * count])


def _group_norm(ids: ChannelGroups, operation: Operation) -> None:
    arguments = operation.bound()
    for name in ("input", "weight", "bias"):
        if arguments.get(name) is not None:
            ids.pin(ids.of(arguments[name]), "GroupNorm's statistics, which would change")


def _reduce(ids: ChannelGroups, operation: Operation) -> None:
    arguments = operation.bound()
    signal = ids.of(operation.args[0])
    dims = arguments.get("dim", arguments.get("dims"))
    dims = (
        list(range(len(signal)))
        if dims in (None, [])
        else [dims]
        if isinstance(dims, int)
        else list(dims)
    )
    reduced = {dim % len(signal) for dim in dims} if signal else set()
    ids.pin([signal[dim] for dim in reduced], f"{operation.name} over them")
    axes = [
        None if place in reduced else axis
        for place, axis in enumerate(signal)
        if place not in reduced or arguments.get("keepdim")
    ]
    for index, value in enumerate(operation.outputs):
        if value is not None:
            ids.set(operation, axes, index)


def _across(ids: ChannelGroups, operation: Operation) -> None:
    """Pin the dimension of a softmax."""
    signal, dim = list(ids.of(operation.args[0])), operation.args[1]
    ids.pin([signal[dim]], f"{operation.name} over them")
    signal[dim] = None
    ids.set(operation, signal)


def _windows(ids: ChannelGroups, operation: Operation) -> None:
    """Pin the spatial dimensions of pooling, resizing or padding."""
    signal = ids.of(operation.args[0])
    spatial = int(next(letter for letter in operation.name if letter in "123"))
    ids.pin(signal[-spatial:], f"{operation.name} over them")
    for index, value in enumerate(operation.outputs):
        if value is not None:
            ids.set(operation, [*signal[:-spatial], *[None] * spatial], index)


def _pad(ids: ChannelGroups, operation: Operation) -> None:
    signal, pads = ids.of(operation.args[0]), operation.args[1]
    axes: list[Axis] = []
    for place, axis in enumerate(signal):
        at = 2 * (len(signal) - 1 - place)
        padded = any(pads[at : at + 2])
        ids.pin([axis] if padded else [], "padded")
        axes.append(None if padded else axis)
    ids.set(operation, axes)


def _concatenate(ids: ChannelGroups, operation: Operation) -> None:
    parts = [value for value in operation.args[0] if ids.tensor(value).numel()]
    dim = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim", 0)
    dim %= ids.tensor(parts[0]).dim()
    axes: list[Axis] = []
    for place in range(ids.tensor(parts[0]).dim()):
        along = [ids.of(value)[place] for value in parts]
        if place != dim:
            axes.append(ids.join(*along))
        elif all(axis is None for axis in along):
            axes.append(None)
        else:
            # Parts of fixed size get new ids, which are pinned.
            filled = [
                ids._fresh(ids.tensor(value).shape[dim]) if x is None else x
                for value, x in zip(parts, along, strict=True)
            ]
            ids.pin(
                [new for new, x in zip(filled, along, strict=True) if x is None], "concatenated"
            )
            axes.append(torch.cat(filled))
    ids.set(operation, axes)


def _stack(ids: ChannelGroups, operation: Operation) -> None:
    parts = [ids.of(value) for value in operation.args[0]]
    dim = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim", 0)
    axes = [ids.join(*along) for along in zip(*parts, strict=True)]
    axes.insert(dim % (len(axes) + 1), None)
    ids.set(operation, axes)


def _permute(ids: ChannelGroups, operation: Operation) -> None:
    signal = ids.of(operation.args[0])
    if operation.name == "permute":
        axes = [signal[place] for place in operation.args[1]]
    else:
        a, b = operation.args[1:3] if operation.name == "transpose" else (0, -1)
        axes = list(signal)
        if axes:
            axes[a], axes[b] = signal[b], signal[a]
    ids.set(operation, axes)


def _unsqueeze(ids: ChannelGroups, operation: Operation) -> None:
    axes = list(ids.of(operation.args[0]))
    axes.insert(operation.args[1] % (len(axes) + 1), None)
    ids.set(operation, axes)


def _squeeze(ids: ChannelGroups, operation: Operation) -> None:
    signal, shape = ids.of(operation.args[0]), ids.tensor(operation.args[0]).shape
    requested = operation.args[1] if len(operation.args) > 1 else range(len(shape))
    dims = {
        dim % len(shape)
        for dim in ([requested] if isinstance(requested, int) else requested)
        if shape[dim] == 1
    }
    ids.pin([signal[dim] for dim in dims], "squeezed")
    ids.set(operation, [axis for place, axis in enumerate(signal) if place not in dims])


def _expand(ids: ChannelGroups, operation: Operation) -> None:
    signal, shape = ids.of(operation.args[0]), ids.tensor(operation.args[0]).shape
    output = operation.outputs[0]
    assert output is not None
    wide = ids.tensor(output).shape
    axes: list[Axis] = [None] * (len(wide) - len(shape))
    for axis, before, after in zip(signal, shape, wide[len(axes) :], strict=True):
        ids.pin([axis] if before != after else [], "spread over a dimension")
        axes.append(axis if before == after else None)
    ids.set(operation, axes)


def _slice(ids: ChannelGroups, operation: Operation) -> None:
    """Pin the sliced dimension, unless the slice is the whole dimension."""
    signal = list(ids.of(operation.args[0]))
    dim = operation.args[1] if len(operation.args) > 1 else 0
    output = operation.outputs[0]
    assert output is not None
    if ids.tensor(output).shape[dim] != ids.tensor(operation.args[0]).shape[dim]:
        ids.pin([signal[dim]], "sliced")
        signal[dim] = None
    ids.set(operation, signal)


def _select(ids: ChannelGroups, operation: Operation) -> None:
    signal, dim = list(ids.of(operation.args[0])), operation.args[1]
    ids.pin([signal.pop(dim)], "selected from")
    ids.set(operation, signal)


def _split(ids: ChannelGroups, operation: Operation) -> None:
    signal = list(ids.of(operation.args[0]))
    dim = operation.args[2] if len(operation.args) > 2 else operation.kwargs.get("dim", 0)
    ids.pin([signal[dim]], "split")
    signal[dim] = None
    for index in range(len(operation.outputs)):
        ids.set(operation, signal, index)


def _view(ids: ChannelGroups, operation: Operation) -> None:
    """Propagate ids to another shape of the same entries.

    A dimension that merges others repeats the ids of the only one among them that has ids.
    """
    value, output = operation.args[0], operation.outputs[0]
    assert output is not None
    signal, before, after = (
        ids.of(value),
        list(ids.tensor(value).shape),
        list(ids.tensor(output).shape),
    )
    if 0 in before:
        return _unknown(ids, operation)
    axes: list[Axis] = []
    i = j = 0
    while i < len(before) or j < len(after):
        if i < len(before) and j < len(after) and before[i] == after[j]:
            axes.append(signal[i])
            i, j = i + 1, j + 1
            continue
        start, begun = i, j
        left = right = 1
        # Find the shortest runs of dimensions with equal numbers of entries.
        while i == start or j == begun or left != right:
            if left <= right and i < len(before):
                left, i = left * before[i], i + 1
            elif j < len(after):
                right, j = right * after[j], j + 1
            elif i < len(before):
                left, i = left * before[i], i + 1
            else:
                break
        axes += _reshaped(ids, signal[start:i], before[start:i], after[begun:j])
    ids.set(operation, axes)


def _reshaped(
    ids: ChannelGroups, axes: list[Axis], before: list[int], after: list[int]
) -> list[Axis]:
    """Return the axes after dimensions of sizes ``before`` have become dimensions ``after``."""
    with_ids = [place for place, axis in enumerate(axes) if axis is not None]
    wide = [place for place, size in enumerate(after) if size > 1]
    result: list[Axis] = [None] * len(after)
    if not with_ids:
        return result
    if len(with_ids) > 1 or len(wide) != 1 or before[with_ids[0]] == 1:
        ids.pin(axes, "split or mixed by a change of shape")
        return result
    axis = axes[with_ids[0]]
    assert axis is not None
    shape = [size if place == with_ids[0] else 1 for place, size in enumerate(before)]
    result[wide[0]] = axis.view(shape).expand(before).reshape(-1)
    return result


def _factory(ids: ChannelGroups, operation: Operation) -> None:
    """Leave the axes of a new tensor without ids, since Python numbers fix its size."""


def _index(ids: ChannelGroups, operation: Operation) -> None:
    """Pin the dimensions that are indexed and propagate the ids of the others."""
    signal, indices = ids.of(operation.args[0]), list(operation.args[1])
    places = [place for place, index in enumerate(indices) if index is not None]
    index_tensors = [ids.tensor(indices[place]) for place in places]
    if any(index.dtype in (torch.bool, torch.uint8) for index in index_tensors):
        return _unknown(ids, operation)
    for place in places:
        ids.pin(ids.of(indices[place]), "used as an index")
    ids.pin([signal[place] for place in places], "indexed")
    indexed: list[Axis] = [None] * max(index.dim() for index in index_tensors)
    rest = [axis for place, axis in enumerate(signal) if place not in places]
    first = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    ids.set(operation, [*rest[:first], *indexed, *rest[first:]])


def _index_select(ids: ChannelGroups, operation: Operation) -> None:
    signal, dim = list(ids.of(operation.args[0])), operation.args[1]
    if not signal:
        return _unknown(ids, operation)
    ids.pin([signal[dim], *ids.of(operation.args[2])], "indexed")
    signal[dim] = None
    ids.set(operation, signal)


def _index_add(ids: ChannelGroups, operation: Operation) -> None:
    """Pin the indexed dimension and join the other dimensions of both tensors."""
    value, dim, index, added = operation.args[:4]
    signal, other = ids.of(value), ids.of(added)
    if not signal or len(signal) != len(other):
        return _unknown(ids, operation)
    dim %= len(signal)
    ids.pin([signal[dim], other[dim], *ids.of(index)], "indexed")
    joined = [
        None if place == dim else ids.join(*both)
        for place, both in enumerate(zip(signal, other, strict=True))
    ]
    ids.set(operation, joined)


def _same(ids: ChannelGroups, operation: Operation) -> None:
    ids.set(operation, ids.of(operation.args[0]))


_RULES: dict[str, Rule] = {
    "convolution": _convolution,
    "mm": _product,
    "addmm": _product,
    **dict.fromkeys(operators.BATCH_NORMS, _batch_norm),
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduce),
    **dict.fromkeys(operators.SOFTMAXES | {"_log_softmax"}, _across),
    **dict.fromkeys(
        operators.POOLS | operators.RESIZES | operators.BICUBIC_RESIZES | operators.PADS, _windows
    ),
    "constant_pad_nd": _pad,
    "cat": _concatenate,
    "stack": _stack,
    **dict.fromkeys(("t", "transpose", "permute"), _permute),
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "slice": _slice,
    "select": _select,
    **dict.fromkeys(operators.SPLITS, _split),
    **dict.fromkeys(operators.RESHAPES, _view),
    # A clone is pointwise, as torch tags it.
    **dict.fromkeys((operators.ALIASES - {"clone"}) | operators.CONVERSIONS, _same),
    **dict.fromkeys(operators.CREATED_LIKE, _same),
    **dict.fromkeys(operators.CREATED_NEW, _factory),
    "index": _index,
    "index_select": _index_select,
    "index_add": _index_add,
}
