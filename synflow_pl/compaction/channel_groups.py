"""Coupling: which slices of which parameters can only go together.

Every index along every dimension of a parameter gets a number. The numbers are carried along
through the recorded operations, each axis
of a value knowing which of them its entries belong to: a convolution's output has its weight's rows
as channels, a flattened image repeats each channel's number once per position, concatenation
strings them together. Where two axes must agree entry by entry (the columns of a weight and the
channels that it reads, the terms of a residual sum, a BatchNorm's gain) their numbers are *joined*.
What an operation does across an axis (the statistics of a LayerNorm, a softmax, a split in halves)
would change with a part of it gone, so there the numbers are *pinned*. An operation without a rule
pins all that it reads: nothing is ever removed by guess.

No layer or architecture is known here, only ATen operations (:mod:`synflow_pl.graph.trace`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from synflow_pl.graph.trace import Graph, Operation, Value

__all__ = ["BATCH_NORMS", "OUTPUT", "VIEWS", "ChannelGroups", "Contraction", "followed"]

OUTPUT = "output of the network"
Axis = Tensor | None
"""(size,) int64: the number of each entry along a dimension; ``None`` where the dimension keeps its
size whatever is removed.
"""


@dataclass(frozen=True)
class Contraction:
    """An operation in which a weight's rows read a signal along the weight's columns.

    ``index`` is its place in the recording; ``rows`` and ``columns`` number the weight's two sides.
    """

    index: int
    signal: Value
    weight: Value
    rows: Tensor
    columns: Tensor


class ChannelGroups:
    """The numbers of a recording, and what holds between them.

    Args:
        recording: of the network.
        whole: by name, modules in which nothing may be smaller, with the reason.
        fixed: names of modules whose forward fixes the number of groups of its grouped
            convolutions.

    Attributes:
        axes: by value number, the numbers along each of its dimensions.
        pinned: numbers that must stay, each with the reason.
        contractions: in the order of the recording; those of grouped convolutions are not among
            them, since a group's inputs and outputs are joined.
        notes: what to know, in whole sentences without a full stop.
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
        """(count,) int64: for each number, the one that stands for all that it is joined with."""
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

    # -- for the rules

    def of(self, value: Value) -> list[Axis]:
        """The numbers along each dimension of a value."""
        return self.axes.get(value.number) or [None] * self.tensor(value).dim()

    def tensor(self, value: Value) -> Tensor:
        """The tensor as it was recorded: its shape is what counts here."""
        return self.recording.tensors[value.number]

    def set(self, operation: Operation, axes: Sequence[Axis], output: int = 0) -> None:
        """The numbers of one of the operation's outputs."""
        value = operation.outputs[output]
        assert value is not None
        self.axes[value.number] = list(axes)

    def pin(self, axes: Sequence[Axis], why: str) -> None:
        """These must stay."""
        self.pinned += [(axis, why) for axis in axes if axis is not None]

    def join(self, *axes: Axis, why: str = "meets a dimension of fixed size") -> Axis:
        """These agree entry by entry; with one of them fixed, all are."""
        numbered = [axis for axis in axes if axis is not None]
        if len(numbered) < len(axes) and any(len(axis) > 1 for axis in numbered):
            self.pin(numbered, why)
        self._joined += [(numbered[0], other) for other in numbered[1:]]
        return numbered[0] if numbered else None

    def contract(
        self,
        operation: Operation,
        signal: Value,
        weight: Value,
        rows: Axis,
        columns: Axis,
        read: Axis,
    ) -> None:
        """The operation's weight reads ``signal``, whose contracted axis is ``read``."""
        columns = self.join(columns, read)
        if rows is None or columns is None:
            return self.pin([rows, columns], "a weight of fixed size")
        self.contractions.append(Contraction(self._index, signal, weight, rows, columns))

    def _fresh(self, size: int) -> Tensor:
        self.count += size
        return torch.arange(self.count - size, self.count)


Rule = Callable[[ChannelGroups, Operation], None]


def followed(operation: Operation) -> bool:
    """Whether there is a rule for the operation."""
    return operation.name in _RULES or _is_pointwise(operation)


# -- rules


def _is_pointwise(operation: Operation) -> bool:
    return torch.Tag.pointwise in operation.target.tags or operation.name in _POINTWISE


def _unknown(units: ChannelGroups, operation: Operation) -> None:
    for value in operation.reads:
        units.pin(units.of(value), f"read by {operation.name}")


def _pointwise(units: ChannelGroups, operation: Operation) -> None:
    output = operation.outputs[0]
    if output is None:  # a comparison of whole tensors gives a Python number
        return _unknown(units, operation)
    shape = units.tensor(output).shape
    axes: list[Axis] = []
    for place in range(-len(shape), 0):
        meeting = []
        for value in operation.reads:
            if units.tensor(value).dim() < -place:
                continue
            size, axis = units.tensor(value).shape[place], units.of(value)[place]
            if size == shape[place] and (axis is not None or size > 1):
                meeting.append(axis)
            else:
                units.pin([axis], "spread over a dimension")
        axes.append(units.join(*meeting))
    for index, made in enumerate(operation.outputs):
        if made is not None and units.tensor(made).shape == shape:
            units.set(operation, axes, index)


def _convolution(units: ChannelGroups, operation: Operation) -> None:
    signal, weight, bias, _, _, _, transposed, _, groups = operation.args[:9]
    batch, channels, *_ = units.of(signal)
    first, second, *kernel = units.of(weight)
    if weight.number in units.flow or batch is not None:
        return _unknown(units, operation)
    units.pin(kernel, "the extent of a kernel")
    if groups > 1:
        still = transposed or operation.module in units.fixed
        rows = _groups(units, groups, channels, first, second, still)
    else:
        rows, columns = (second, first) if transposed else (first, second)
        units.contract(operation, signal, weight, rows, columns, channels)
    if bias is not None:
        units.join(units.of(bias)[0], rows)
    units.set(operation, [None, rows, *[None] * len(kernel)])


def _groups(
    units: ChannelGroups, groups: int, channels: Axis, first: Axis, second: Axis, still: bool
) -> Axis:
    """In a grouped convolution all inputs and outputs of a group go together, or groups would
    differ in size.
    """
    if (
        still or channels is None or first is None
    ):  # a kernel that is computed or fixed may have no rows to take out
        units.pin([channels, first, second], "a grouped convolution of fixed size")
        return None
    units.pin([second], "the size of a group")
    if len(channels) > groups:
        units.notes.add(
            "of a grouped convolution with several channels to a group, only whole groups can go"
        )
    for inputs, rows in zip(channels.chunk(groups), first.chunk(groups), strict=True):
        whole = torch.cat([inputs, rows])
        units.join(whole[:-1], whole[1:])
    return first


def _product(units: ChannelGroups, operation: Operation) -> None:
    bias = operation.args[0] if operation.name == "addmm" else None
    signal, weight = operation.args[-2:]
    if weight.number in units.flow:
        return _unknown(units, operation)
    rows, read = units.of(signal)
    columns, made = units.of(weight)
    units.contract(operation, signal, weight, made, columns, read)
    if bias is not None:
        units.join(units.of(bias)[-1], made)
    units.set(operation, [rows, made])


def _batch_norm(units: ChannelGroups, operation: Operation) -> None:
    given = operation.bound()
    signal = units.of(given["input"])
    of_channels = [
        units.of(given[name])[0]
        for name in ("weight", "bias", "running_mean", "running_var")
        if given.get(name) is not None
    ]
    channels = units.join(signal[1], *of_channels)
    if given.get("training") or given.get("running_mean") is None:
        units.pin([axis for place, axis in enumerate(signal) if place != 1], "a batch's statistics")
    units.set(operation, [signal[0], channels, *signal[2:]])


def _layer_norm(units: ChannelGroups, operation: Operation) -> None:
    given = operation.bound()
    signal, count = units.of(given["input"]), len(given["normalized_shape"])
    units.pin(signal[-count:], "LayerNorm's statistics, which would change")
    for name in ("weight", "bias"):
        if given.get(name) is not None:
            units.pin(units.of(given[name]), "LayerNorm's statistics, which would change")
    units.set(operation, [*signal[:-count], *[None] * count])


def _group_norm(units: ChannelGroups, operation: Operation) -> None:
    given = operation.bound()
    for name in ("input", "weight", "bias"):
        if given.get(name) is not None:
            units.pin(units.of(given[name]), "GroupNorm's statistics, which would change")


def _reduce(units: ChannelGroups, operation: Operation) -> None:
    given = operation.bound()
    signal = units.of(operation.args[0])
    dims = given.get("dim", given.get("dims"))
    dims = (
        list(range(len(signal)))
        if dims in (None, [])
        else [dims]
        if isinstance(dims, int)
        else list(dims)
    )
    gone = {dim % len(signal) for dim in dims} if signal else set()
    units.pin([signal[dim] for dim in gone], f"{operation.name} over them")
    axes = [
        None if place in gone else axis
        for place, axis in enumerate(signal)
        if place not in gone or given.get("keepdim")
    ]
    for index, value in enumerate(operation.outputs):
        if value is not None:
            units.set(operation, axes, index)


def _across(units: ChannelGroups, operation: Operation) -> None:
    """A softmax: along one dimension."""
    signal, dim = list(units.of(operation.args[0])), operation.args[1]
    units.pin([signal[dim]], f"{operation.name} over them")
    signal[dim] = None
    units.set(operation, signal)


def _windows(units: ChannelGroups, operation: Operation) -> None:
    """Pooling, resizing and padding of the spatial dimensions."""
    signal = units.of(operation.args[0])
    spatial = int(next(letter for letter in operation.name if letter in "123"))
    units.pin(signal[-spatial:], f"{operation.name} over them")
    for index, value in enumerate(operation.outputs):
        if value is not None:
            units.set(operation, [*signal[:-spatial], *[None] * spatial], index)


def _pad(units: ChannelGroups, operation: Operation) -> None:
    signal, pads = units.of(operation.args[0]), operation.args[1]
    axes: list[Axis] = []
    for place, axis in enumerate(signal):
        at = 2 * (len(signal) - 1 - place)
        padded = any(pads[at : at + 2])
        units.pin([axis] if padded else [], "padded")
        axes.append(None if padded else axis)
    units.set(operation, axes)


def _concatenate(units: ChannelGroups, operation: Operation) -> None:
    parts = [value for value in operation.args[0] if units.tensor(value).numel()]
    dim = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim", 0)
    dim %= units.tensor(parts[0]).dim()
    axes: list[Axis] = []
    for place in range(units.tensor(parts[0]).dim()):
        along = [units.of(value)[place] for value in parts]
        if place != dim:
            axes.append(units.join(*along))
        elif all(axis is None for axis in along):
            axes.append(None)
        else:
            # What has no number here keeps its size: fresh numbers that stay.
            filled = [
                units._fresh(units.tensor(value).shape[dim]) if x is None else x
                for value, x in zip(parts, along, strict=True)
            ]
            units.pin(
                [new for new, x in zip(filled, along, strict=True) if x is None], "concatenated"
            )
            axes.append(torch.cat(filled))
    units.set(operation, axes)


def _stack(units: ChannelGroups, operation: Operation) -> None:
    parts = [units.of(value) for value in operation.args[0]]
    dim = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim", 0)
    axes = [units.join(*along) for along in zip(*parts, strict=True)]
    axes.insert(dim % (len(axes) + 1), None)
    units.set(operation, axes)


def _permute(units: ChannelGroups, operation: Operation) -> None:
    signal = units.of(operation.args[0])
    if operation.name == "permute":
        axes = [signal[place] for place in operation.args[1]]
    else:
        a, b = operation.args[1:3] if operation.name == "transpose" else (0, -1)
        axes = list(signal)
        if axes:
            axes[a], axes[b] = signal[b], signal[a]
    units.set(operation, axes)


def _unsqueeze(units: ChannelGroups, operation: Operation) -> None:
    axes = list(units.of(operation.args[0]))
    axes.insert(operation.args[1] % (len(axes) + 1), None)
    units.set(operation, axes)


def _squeeze(units: ChannelGroups, operation: Operation) -> None:
    signal, shape = units.of(operation.args[0]), units.tensor(operation.args[0]).shape
    given = operation.args[1] if len(operation.args) > 1 else range(len(shape))
    dims = {
        dim % len(shape)
        for dim in ([given] if isinstance(given, int) else given)
        if shape[dim] == 1
    }
    units.pin([signal[dim] for dim in dims], "squeezed")
    units.set(operation, [axis for place, axis in enumerate(signal) if place not in dims])


def _expand(units: ChannelGroups, operation: Operation) -> None:
    signal, shape = units.of(operation.args[0]), units.tensor(operation.args[0]).shape
    output = operation.outputs[0]
    assert output is not None
    wide = units.tensor(output).shape
    axes: list[Axis] = [None] * (len(wide) - len(shape))
    for axis, before, after in zip(signal, shape, wide[len(axes) :], strict=True):
        units.pin([axis] if before != after else [], "spread over a dimension")
        axes.append(axis if before == after else None)
    units.set(operation, axes)


def _slice(units: ChannelGroups, operation: Operation) -> None:
    """A part along one dimension; all of it is no part."""
    signal = list(units.of(operation.args[0]))
    dim = operation.args[1] if len(operation.args) > 1 else 0
    output = operation.outputs[0]
    assert output is not None
    if units.tensor(output).shape[dim] != units.tensor(operation.args[0]).shape[dim]:
        units.pin([signal[dim]], "sliced")
        signal[dim] = None
    units.set(operation, signal)


def _select(units: ChannelGroups, operation: Operation) -> None:
    signal, dim = list(units.of(operation.args[0])), operation.args[1]
    units.pin([signal.pop(dim)], "selected from")
    units.set(operation, signal)


def _split(units: ChannelGroups, operation: Operation) -> None:
    signal = list(units.of(operation.args[0]))
    dim = operation.args[2] if len(operation.args) > 2 else operation.kwargs.get("dim", 0)
    units.pin([signal[dim]], "split")
    signal[dim] = None
    for index in range(len(operation.outputs)):
        units.set(operation, signal, index)


def _view(units: ChannelGroups, operation: Operation) -> None:
    """Another shape of the same entries: dimensions that are merged repeat the numbers of the one
    among them that has any.
    """
    value, output = operation.args[0], operation.outputs[0]
    assert output is not None
    signal, before, after = (
        units.of(value),
        list(units.tensor(value).shape),
        list(units.tensor(output).shape),
    )
    if 0 in before:
        return _unknown(units, operation)
    axes: list[Axis] = []
    i = j = 0
    while i < len(before) or j < len(after):
        if i < len(before) and j < len(after) and before[i] == after[j]:
            axes.append(signal[i])
            i, j = i + 1, j + 1
            continue
        start, begun = i, j
        left = right = 1
        while (
            i == start or j == begun or left != right
        ):  # the shortest runs of dimensions that hold equally many entries
            if left <= right and i < len(before):
                left, i = left * before[i], i + 1
            elif j < len(after):
                right, j = right * after[j], j + 1
            elif i < len(before):
                left, i = left * before[i], i + 1
            else:
                break
        axes += _reshaped(units, signal[start:i], before[start:i], after[begun:j])
    units.set(operation, axes)


def _reshaped(
    units: ChannelGroups, axes: list[Axis], before: list[int], after: list[int]
) -> list[Axis]:
    numbered = [place for place, axis in enumerate(axes) if axis is not None]
    wide = [place for place, size in enumerate(after) if size > 1]
    free: list[Axis] = [None] * len(after)
    if not numbered:
        return free
    if len(numbered) > 1 or len(wide) != 1 or before[numbered[0]] == 1:
        units.pin(axes, "split or mixed by a change of shape")
        return free
    numbers = axes[numbered[0]]
    assert numbers is not None
    shape = [size if place == numbered[0] else 1 for place, size in enumerate(before)]
    free[wide[0]] = numbers.view(shape).expand(before).reshape(-1)
    return free


def _sized(units: ChannelGroups, operation: Operation) -> None:
    """A new tensor whose size is given by numbers: it reads nothing, and what meets it meets a
    dimension of fixed size.
    """


def _index(units: ChannelGroups, operation: Operation) -> None:
    """Entries at given places along some dimensions; the others stay as they are."""
    signal, indices = units.of(operation.args[0]), list(operation.args[1])
    places = [place for place, index in enumerate(indices) if index is not None]
    given = [units.tensor(indices[place]) for place in places]
    if any(index.dtype in (torch.bool, torch.uint8) for index in given):
        return _unknown(units, operation)
    for place in places:
        units.pin(units.of(indices[place]), "used as an index")
    units.pin([signal[place] for place in places], "indexed")
    made: list[Axis] = [None] * max(index.dim() for index in given)
    rest = [axis for place, axis in enumerate(signal) if place not in places]
    first = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    units.set(operation, [*rest[:first], *made, *rest[first:]])


def _index_select(units: ChannelGroups, operation: Operation) -> None:
    signal, dim = list(units.of(operation.args[0])), operation.args[1]
    if not signal:
        return _unknown(units, operation)
    units.pin([signal[dim], *units.of(operation.args[2])], "indexed")
    signal[dim] = None
    units.set(operation, signal)


def _index_add(units: ChannelGroups, operation: Operation) -> None:
    """Entries are added at given places along one dimension."""
    value, dim, index, added = operation.args[:4]
    signal, other = units.of(value), units.of(added)
    if not signal or len(signal) != len(other):
        return _unknown(units, operation)
    dim %= len(signal)
    units.pin([signal[dim], other[dim], *units.of(index)], "indexed")
    joined = [
        None if place == dim else units.join(*both)
        for place, both in enumerate(zip(signal, other, strict=True))
    ]
    units.set(operation, joined)


def _same(units: ChannelGroups, operation: Operation) -> None:
    units.set(operation, units.of(operation.args[0]))


VIEWS = frozenset("view _unsafe_view _reshape_alias reshape view_copy".split())
BATCH_NORMS = frozenset(
    """native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit cudnn_batch_norm miopen_batch_norm
    _batch_norm_with_update""".split()
)
# Pointwise, though torch does not say so of all of them in every version.
_POINTWISE = frozenset(
    """hardswish hardsigmoid hardtanh leaky_relu elu celu selu gelu silu mish softplus relu relu6 copy clone _prelu_kernel
    log_sigmoid_forward""".split()
)
_RULES: dict[str, Rule] = {
    "convolution": _convolution,
    "mm": _product,
    "addmm": _product,
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduce),
    **dict.fromkeys(("_softmax", "_log_softmax"), _across),
    **dict.fromkeys(
        """avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices _adaptive_avg_pool2d _adaptive_avg_pool3d
        adaptive_avg_pool1d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d
        _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
        upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d
        replication_pad1d replication_pad2d""".split(),
        _windows,
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
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    **dict.fromkeys(VIEWS, _view),
    **dict.fromkeys(("alias", "detach", "_to_copy", "lift_fresh", "contiguous"), _same),
    **dict.fromkeys(
        "zeros_like ones_like full_like empty_like rand_like randn_like".split(), _same
    ),
    **dict.fromkeys("new_zeros new_ones new_full new_empty".split(), _sized),
    "index": _index,
    "index_select": _index_select,
    "index_add": _index_add,
}
