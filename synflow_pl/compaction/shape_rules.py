"""How slices move through operations that rearrange entries: views, concatenation, indexing.

Each function is the rule of one or more operations. It joins or pins ids of what an operation reads
and sets the ids of its outputs.
"""

from __future__ import annotations

import torch

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
    if operation.name == "permute":
        axes = [signal[place] for place in operation.args[1]]
    else:
        a, b = operation.args[1:3] if operation.name == "transpose" else (0, -1)
        axes = list(signal)
        if axes:
            axes[a], axes[b] = signal[b], signal[a]
    ids.set(operation, axes)


def unsqueeze(ids: SliceIds, operation: Operation) -> None:
    """Insert a dimension of size 1."""
    axes = list(ids.of(operation.args[0]))
    axes.insert(operation.args[1] % (len(axes) + 1), None)
    ids.set(operation, axes)


def squeeze(ids: SliceIds, operation: Operation) -> None:
    """Pin the dimensions of size 1 that are removed."""
    signal, shape = ids.of(operation.args[0]), ids.tensor(operation.args[0]).shape
    requested = operation.bound().get("dim", range(len(shape)))
    dims = {
        dim % len(shape)
        for dim in ([requested] if isinstance(requested, int) else requested)
        if shape[dim] == 1
    }
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
    """Pin the dimension of which one entry is selected."""
    signal, dim = list(ids.of(operation.args[0])), operation.args[1]
    ids.pin([signal.pop(dim)], "selected from")
    ids.set(operation, signal)


def splitting(ids: SliceIds, operation: Operation) -> None:
    """Pin the dimension that is split."""
    dim = operation.bound().get("dim", 0)
    ids.set_all(operation, ids.pin_dimension(operation.args[0], dim, "split"))


def view(ids: SliceIds, operation: Operation) -> None:
    """Propagate ids to another shape of the same entries.

    A dimension that merges others repeats the ids of the only one among them that has ids.
    """
    signal = ids.of(operation.args[0])
    before, after = list(ids.tensor(operation.args[0]).shape), list(ids.output_shape(operation))
    if 0 in before:
        return ids.pin_reads(operation)
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


def _reshaped(ids: SliceIds, axes: list[Axis], before: list[int], after: list[int]) -> list[Axis]:
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
