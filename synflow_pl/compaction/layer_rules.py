"""How slices are tied together by layers, pointwise operations, normalisations and pooling.

Each function is the rule of one or more operations. It joins or pins ids of what an operation reads
and sets the ids of its outputs.
"""

from __future__ import annotations

import torch

from synflow_pl.compaction.slice_ids import Axis, SliceIds
from synflow_pl.graph import operators
from synflow_pl.graph.trace import Operation, Value

__all__ = [
    "batch_norm",
    "convolution",
    "group_norm",
    "layer_norm",
    "padding",
    "pointwise",
    "product",
    "product_of_signals",
    "reduction",
    "softmax",
    "windows",
]


def pointwise(ids: SliceIds, operation: Operation) -> None:
    """Join the dimensions of all values that an operation combines entry by entry."""
    output = operation.outputs[0]
    if output is None:  # a comparison of whole tensors returns a Python number
        return ids.pin_reads(operation)
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
    for result in operation.results:
        if ids.tensor(result).shape == shape:
            ids.axes[result.number] = list(axes)


def convolution(ids: SliceIds, operation: Operation) -> None:
    """Record a contraction, or join the inputs and outputs of each group."""
    signal, weight, bias, _, _, _, transposed, _, groups = operation.args[:9]
    batch, channels, *_ = ids.of(signal)
    first, second, *kernel = ids.of(weight)
    if weight.number in ids.flow or batch is not None:
        return ids.pin_reads(operation)
    ids.pin(kernel, "the extent of a kernel")
    if groups > 1:
        is_fixed = transposed or operation.module in ids.fixed
        rows = _groups(ids, groups, channels, first, second, is_fixed)
    else:
        rows, columns = (second, first) if transposed else (first, second)
        ids.contract(signal, weight, rows, columns, channels)
    if bias is not None:
        ids.join(ids.of(bias)[0], rows)
    ids.set(operation, [None, rows, *[None] * len(kernel)])


def _groups(
    ids: SliceIds, groups: int, channels: Axis, first: Axis, second: Axis, is_fixed: bool
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


def product(ids: SliceIds, operation: Operation) -> None:
    """Record a contraction of a matrix product with a weight."""
    bias = operation.args[0] if operation.name == "addmm" else None
    signal, weight = operation.args[-2:]
    if weight.number in ids.flow:
        return ids.pin_reads(operation)
    batch, read = ids.of(signal)
    columns, rows = ids.of(weight)
    ids.contract(signal, weight, rows, columns, read)
    if bias is not None:
        ids.join(ids.of(bias)[-1], rows)
    ids.set(operation, [batch, rows])


def product_of_signals(ids: SliceIds, operation: Operation) -> None:
    """Join the heads of the factors of a product, and pin the dimensions that it combines."""
    is_attention = operation.name in operators.ATTENTIONS
    factors = operation.args[:3] if is_attention else operation.args[-2:]
    others = [value for value in operation.reads if value not in factors]
    batches = {ids.tensor(value).shape[:-2] for value in factors}
    if len(batches) > 1 or not all(value.number in ids.flow for value in factors):
        return ids.pin_reads(operation)
    axes = [ids.of(value) for value in factors]
    heads = [ids.join(*along) for along in zip(*(x[:-2] for x in axes), strict=True)]
    for place, axis in enumerate(axes):
        ids.pin(
            axis[-2:] if is_attention else axis[-1:] if place == 0 else axis[-2:-1], "a product"
        )
    rest: list[Axis] = [None, None] if is_attention else [axes[0][-2], axes[1][-1]]
    _add_to_heads(ids, others, heads)
    for output in operation.results:
        if ids.tensor(output).dim() >= len(heads):
            ids.axes[output.number] = [*heads, *rest][: ids.tensor(output).dim()]


def _add_to_heads(ids: SliceIds, values: list[Value], heads: list[Axis]) -> None:
    """Join the heads of biases that are added to a product, and pin the rest of them."""
    for value in values:
        axes, shape = ids.of(value), ids.tensor(value).shape
        for place, axis in enumerate(axes[:-2]):
            head = heads[place - len(axes) + 2] if len(axes) - 2 <= len(heads) else None
            if axis is not None and head is not None and shape[place] == len(head):
                ids.join(axis, head)
            else:
                ids.pin([axis], "spread over a dimension")
        ids.pin(axes[-2:], "added to a product")


def batch_norm(ids: SliceIds, operation: Operation) -> None:
    """Join the channels of a signal with gain, shift and running statistics."""
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


def layer_norm(ids: SliceIds, operation: Operation) -> None:
    """Pin the dimensions over which a LayerNorm's statistics are computed."""
    arguments = operation.bound()
    signal, count = ids.of(arguments["input"]), len(arguments["normalized_shape"])
    ids.pin(signal[-count:], "LayerNorm's statistics, which would change")
    for name in ("weight", "bias"):
        if arguments.get(name) is not None:
            ids.pin(ids.of(arguments[name]), "LayerNorm's statistics, which would change")
    ids.set(operation, [*signal[:-count], *[None] * count])


def group_norm(ids: SliceIds, operation: Operation) -> None:
    """Pin everything that a GroupNorm reads."""
    arguments = operation.bound()
    for name in ("input", "weight", "bias"):
        if arguments.get(name) is not None:
            ids.pin(ids.of(arguments[name]), "GroupNorm's statistics, which would change")


def reduction(ids: SliceIds, operation: Operation) -> None:
    """Pin the dimensions that a sum, mean or extremum reduces."""
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
    ids.set_all(operation, axes)


def softmax(ids: SliceIds, operation: Operation) -> None:
    """Pin the dimension of a softmax."""
    signal, dim = operation.args[:2]
    ids.set(operation, ids.pin_dimension(signal, dim, f"{operation.name} over them"))


def windows(ids: SliceIds, operation: Operation) -> None:
    """Pin the spatial dimensions of pooling, resizing or padding."""
    signal = ids.of(operation.args[0])
    spatial = int(next(letter for letter in operation.name if letter in "123"))
    ids.pin(signal[-spatial:], f"{operation.name} over them")
    ids.set_all(operation, [*signal[:-spatial], *[None] * spatial])


def padding(ids: SliceIds, operation: Operation) -> None:
    """Pin the dimensions that are padded."""
    signal, pads = ids.of(operation.args[0]), operation.args[1]
    axes: list[Axis] = []
    for place, axis in enumerate(signal):
        at = 2 * (len(signal) - 1 - place)
        padded = any(pads[at : at + 2])
        ids.pin([axis] if padded else [], "padded")
        axes.append(None if padded else axis)
    ids.set(operation, axes)
