"""How slices move through operations that rearrange entries: views, concatenation, indexing.

Each function is the rule of one or more operations. It joins or pins ids of what an operation reads
and sets the ids of its outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from synflow_pl.compaction.attention_heads import permuted_dims, runs, squeezed_dims
from synflow_pl.compaction.slice_ids import Axis, SliceIds
from synflow_pl.graph.trace import Operation

__all__ = [
    "concatenation",
    "expansion",
    "index",
    "index_add",
    "index_select",
    "new_tensor",
    "permutation",
    "restriding",
    "same_shape",
    "selection",
    "slicing",
    "splitting",
    "squeeze",
    "stack",
    "unsqueeze",
    "view",
]


def concatenation(ids: SliceIds, operation: Operation) -> None:
    """Concatenate the ids along one dimension, and join those of the others."""
    parts = [value for value in operation.args[0] if ids.tensor(value).numel()]
    dim = operation.bound().get("dim", 0)
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
                ids.fresh(ids.tensor(value).shape[dim]) if x is None else x
                for value, x in zip(parts, along, strict=True)
            ]
            ids.pin(
                [new for new, x in zip(filled, along, strict=True) if x is None], "concatenated"
            )
            axes.append(torch.cat(filled))
    ids.set(operation, axes)


def stack(ids: SliceIds, operation: Operation) -> None:
    """Join the ids of all parts, and insert the new dimension."""
    parts = [ids.of(value) for value in operation.args[0]]
    dim = operation.bound().get("dim", 0)
    axes = [ids.join(*along) for along in zip(*parts, strict=True)]
    axes.insert(dim % (len(axes) + 1), None)
    ids.set(operation, axes)


def permutation(ids: SliceIds, operation: Operation) -> None:
    """Exchange dimensions."""
    signal = ids.of(operation.args[0])
    ids.set(operation, [signal[place] for place in permuted_dims(operation, len(signal))])


def unsqueeze(ids: SliceIds, operation: Operation) -> None:
    """Insert a dimension of size 1."""
    axes = list(ids.of(operation.args[0]))
    axes.insert(operation.args[1] % (len(axes) + 1), None)
    ids.set(operation, axes)


def squeeze(ids: SliceIds, operation: Operation) -> None:
    """Pin the dimensions of size 1 that are removed."""
    signal, shape = ids.of(operation.args[0]), ids.tensor(operation.args[0]).shape
    dims = squeezed_dims(operation, shape)
    ids.pin([signal[dim] for dim in dims], "squeezed")
    ids.set(operation, [axis for place, axis in enumerate(signal) if place not in dims])


def expansion(ids: SliceIds, operation: Operation) -> None:
    """Pin the dimensions that are repeated."""
    signal, shape = ids.of(operation.args[0]), ids.tensor(operation.args[0]).shape
    wide = ids.output_shape(operation)
    axes: list[Axis] = [None] * (len(wide) - len(shape))
    for axis, before, after in zip(signal, shape, wide[len(axes) :], strict=True):
        ids.pin([axis] if before != after else [], "spread over a dimension")
        axes.append(axis if before == after else None)
    ids.set(operation, axes)


def slicing(ids: SliceIds, operation: Operation) -> None:
    """Pin the sliced dimension, unless the slice is the whole dimension."""
    signal, dim = operation.args[0], operation.bound().get("dim", 0)
    if ids.output_shape(operation)[dim] == ids.tensor(signal).shape[dim]:
        ids.set(operation, ids.of(signal))
    else:
        ids.set(operation, ids.pin_dimension(signal, dim, "sliced"))


def selection(ids: SliceIds, operation: Operation) -> None:
    """Pin the dimension of which one entry, or each by itself, is selected."""
    signal, dim = list(ids.of(operation.args[0])), operation.bound().get("dim", 0)
    ids.pin([signal.pop(dim)], "selected from")
    ids.set_all(operation, signal)


def splitting(ids: SliceIds, operation: Operation) -> None:
    """Pin the dimension that is split, unless it is split into queries, keys and values."""
    dim = operation.bound().get("dim", 0)
    axis = ids.of(operation.args[0])[dim]
    if ids.index in ids.heads and axis is not None:
        sizes = [ids.tensor(value).shape[dim] for value in operation.results]
        for value, part in zip(operation.results, axis.split(sizes), strict=True):
            ids.axes[value.number] = list(ids.of(operation.args[0]))
            ids.axes[value.number][dim] = part
        return
    ids.set_all(operation, ids.pin_dimension(operation.args[0], dim, "split"))


def view(ids: SliceIds, operation: Operation) -> None:
    """Propagate ids to another shape of the same entries.

    A dimension that merges others repeats the ids of the only one among them that has ids. Where
    channels are split into attention heads, the ids of each head are joined.
    """
    signal = ids.of(operation.args[0])
    before, after = list(ids.tensor(operation.args[0]).shape), list(ids.output_shape(operation))
    if 0 in before:
        return ids.pin_reads(operation)
    axes: list[Axis] = []
    for old, new in runs(before, after):
        if len(old) == len(new) == 1:
            axes.append(signal[old[0]])
            continue
        heads = ids.heads.get(ids.index, frozenset()).intersection(new)
        axes += _reshaped(
            ids,
            [signal[place] for place in old],
            [before[place] for place in old],
            [after[place] for place in new],
            [dim - new[0] for dim in heads],
        )
    ids.set(operation, axes)


def _reshaped(
    ids: SliceIds, axes: list[Axis], before: list[int], after: list[int], heads: list[int]
) -> list[Axis]:
    """Return the axes after dimensions of sizes ``before`` have become dimensions ``after``.

    Args:
        ids: The ids.
        axes: Axes of the dimensions before.
        before: Their sizes.
        after: Sizes of the dimensions after.
        heads: Places in ``after`` that may be the heads of an attention.
    """
    with_ids = [place for place, axis in enumerate(axes) if axis is not None]
    wide = [place for place, size in enumerate(after) if size > 1]
    result: list[Axis] = [None] * len(after)
    if not with_ids:
        return result
    place = with_ids[0]
    axis = axes[place]
    assert axis is not None
    shape = [size if dim == place else 1 for dim, size in enumerate(before)]
    entries = axis.view(shape).expand(before).reshape(after)
    # Heads may have been merged with the batch before.
    repeated = [dim for dim in wide if ids.heads and len(wide) > 1 and _is_repeated(entries, dim)]
    target = wide if len(wide) == 1 else repeated or heads
    if len(with_ids) > 1 or len(target) != 1 or before[place] == 1:
        ids.pin(axes, "split or mixed by a change of shape")
        return result
    of_each = entries.movedim(target[0], 0).reshape(after[target[0]], -1)
    if len(wide) > 1 and not repeated:
        ids.split_heads(of_each)
    result[target[0]] = of_each[:, 0]
    return result


def _is_repeated(entries: Tensor, dim: int) -> bool:
    """Return whether entries depend on their place along one dimension alone."""
    of_each = entries.movedim(dim, 0).reshape(entries.shape[dim], -1)
    return bool((of_each == of_each[:, :1]).all())


def restriding(ids: SliceIds, operation: Operation) -> None:
    """Keep the ids if every entry stays at its place, as after pooling images in channels last."""
    before, sizes, strides = ids.tensor(operation.args[0]), *operation.args[1:3]
    same = list(before.shape) == list(sizes) and all(
        size == 1 or old == new
        for size, old, new in zip(sizes, before.stride(), strides, strict=True)
    )
    if not same or operation.bound().get("storage_offset"):
        return ids.pin_reads(operation)
    ids.set(operation, ids.of(operation.args[0]))


def new_tensor(ids: SliceIds, operation: Operation) -> None:
    """Leave the axes of a new tensor without ids, since Python numbers fix its size."""


def index(ids: SliceIds, operation: Operation) -> None:
    """Pin the dimensions that are indexed and propagate the ids of the others."""
    signal, indices = ids.of(operation.args[0]), list(operation.args[1])
    places = [place for place, index in enumerate(indices) if index is not None]
    index_tensors = [ids.tensor(indices[place]) for place in places]
    if any(index.dtype in (torch.bool, torch.uint8) for index in index_tensors):
        return ids.pin_reads(operation)
    for place in places:
        ids.pin(ids.of(indices[place]), "used as an index")
    ids.pin([signal[place] for place in places], "indexed")
    indexed: list[Axis] = [None] * max(index.dim() for index in index_tensors)
    rest = [axis for place, axis in enumerate(signal) if place not in places]
    first = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    ids.set(operation, [*rest[:first], *indexed, *rest[first:]])


def index_select(ids: SliceIds, operation: Operation) -> None:
    """Pin the indexed dimension and propagate the ids of the others."""
    signal, dim, places = operation.args[:3]
    if not ids.of(signal):
        return ids.pin_reads(operation)
    axes = ids.pin_dimension(signal, dim, "indexed")
    ids.pin(ids.of(places), "indexed")
    ids.set(operation, axes)


def index_add(ids: SliceIds, operation: Operation) -> None:
    """Pin the indexed dimension and join the other dimensions of both tensors."""
    value, dim, index, added = operation.args[:4]
    signal, other = ids.of(value), ids.of(added)
    if not signal or len(signal) != len(other):
        return ids.pin_reads(operation)
    dim %= len(signal)
    ids.pin([signal[dim], other[dim], *ids.of(index)], "indexed")
    joined = [
        None if place == dim else ids.join(*both)
        for place, both in enumerate(zip(signal, other, strict=True))
    ]
    ids.set(operation, joined)


def same_shape(ids: SliceIds, operation: Operation) -> None:
    """Propagate the ids to an output of the same shape."""
    ids.set(operation, ids.of(operation.args[0]))
