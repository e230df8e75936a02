"""Attention heads: the operations that split channels into heads.

A product of two signals, such as that of queries and keys, runs over the heads as over a batch. The
dimension of the heads is followed back from each such product through the operations that only move
entries, to the change of shape (or the split) that made it out of channels. There,
:mod:`synflow_pl.compaction.shape_rules` joins the slices of each head.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import Tensor, nn

from synflow_pl.compaction.slice_ids import Heads
from synflow_pl.graph import operators
from synflow_pl.graph.trace import Graph, Operation, Value

__all__ = [
    "PRODUCTS",
    "attributes_of_fewer_heads",
    "find_heads",
    "permuted_dims",
    "runs",
    "squeezed_dims",
]

PRODUCTS = frozenset(("bmm", "baddbmm")) | operators.ATTENTIONS
"""Operations that are products of two signals for each head."""

_LAYERS = operators.MATRIX_PRODUCTS | operators.ATTENTIONS | frozenset(("convolution",))


def find_heads(graph: Graph) -> dict[int, frozenset[int]]:
    """Return the operations that may split channels into heads.

    Args:
        graph: Graph of the network.

    Returns:
        Dimensions of the output that may be the heads, or that are split into queries, keys and
        values, by the position of the operation in the graph.
    """
    made_by = {
        output.number: index
        for index, operation in enumerate(graph.operations)
        for output in operation.results
    }
    found: dict[int, set[int]] = defaultdict(set)
    waiting = [item for operation in graph.operations for item in _products(graph, operation)]
    seen = set(waiting)
    while waiting:
        value, dim = waiting.pop()
        index = made_by.get(value.number)
        if index is None:
            continue
        for item in _sources(graph, index, value, dim, found):
            if item not in seen:
                seen.add(item)
                waiting.append(item)
    return {index: frozenset(dims) for index, dims in found.items()}


def attributes_of_fewer_heads(
    network: nn.Module, splits: Iterable[Heads], kept: Callable[[Tensor], int]
) -> dict[str, dict[str, int]]:
    """Return the attributes in which modules store their numbers of heads, and the new values.

    These are integers equal to the number of heads, or to the number of channels of all heads.
    A module may fail with the new values, so the caller tries them.

    Args:
        network: The whole network.
        splits: Where channels are split into heads.
        kept: Function that returns how many heads of an axis are kept.

    Returns:
        New values by the names of the module and the attribute, for modules that lose heads.
    """
    found: dict[str, dict[str, int]] = {}
    for split in splits:
        before, after = len(split.ids), kept(split.ids)
        if after == before:
            continue
        sizes = {before * split.channels: after * split.channels}
        if before != split.channels:
            sizes[before] = after
        for name, value in vars(network.get_submodule(split.module)).items():
            is_heads = before == split.channels == value and "head" in name and "dim" not in name
            if type(value) is int and (value in sizes or is_heads):
                found.setdefault(split.module, {})[name] = after if is_heads else sizes[value]
        found.setdefault(split.module, {})
    return found


def runs(before: list[int], after: list[int]) -> Iterator[tuple[range, range]]:
    """Yield the shortest runs of dimensions that have equally many entries in two shapes.

    Args:
        before: Shape before a change of shape, without zeros.
        after: Shape after it.
    """
    i = j = 0
    while i < len(before) or j < len(after):
        start, begun = i, j
        if i < len(before) and j < len(after) and before[i] == after[j]:
            i, j = i + 1, j + 1
        else:
            left = right = 1
            while i == start or j == begun or left != right:
                if left <= right and i < len(before):
                    left, i = left * before[i], i + 1
                elif j < len(after):
                    right, j = right * after[j], j + 1
                elif i < len(before):
                    left, i = left * before[i], i + 1
                else:
                    break
        yield range(start, i), range(begun, j)


def _products(graph: Graph, operation: Operation) -> Iterable[tuple[Value, int]]:
    """Return the factors of a product with the dimensions over which it runs as over a batch."""
    if operation.name not in PRODUCTS:
        return ()
    factors = operation.args[:3] if operation.name in operators.ATTENTIONS else operation.args[-2:]
    return [
        (value, dim)
        for value in factors
        if isinstance(value, Value)
        for dim in range(graph.tensors[value.number].dim() - 2)
    ]


def _sources(
    graph: Graph, index: int, value: Value, dim: int, found: dict[int, set[int]]
) -> Iterator[tuple[Value, int]]:
    """Yield the values and dimensions from which a dimension of an output comes."""
    operation = graph.operations[index]
    if not operation.args or not isinstance(operation.args[0], Value):
        return
    read = operation.args[0]
    shape = list(graph.tensors[read.number].shape)
    if operation.name in operators.RESHAPES and 0 not in shape:
        for old, new in runs(shape, list(graph.tensors[value.number].shape)):
            if dim in new:
                wide = [place for place in old if shape[place] > 1]
                sizes = [graph.tensors[value.number].shape[place] for place in new]
                if sum(size > 1 for size in sizes) > 1:
                    found[index].add(dim)
                for place in wide:
                    yield read, place
    elif operation.name in ("t", "transpose", "permute"):
        yield read, permuted_dims(operation, len(shape))[dim]
    elif operation.name in ("select", "unbind"):
        yield read, dim + (dim >= operation.bound().get("dim", 0) % len(shape))
    elif operation.name == "unsqueeze":
        at = operation.args[1] % (len(shape) + 1)
        if dim != at:
            yield read, dim - (dim > at)
    elif operation.name == "squeeze":
        gone = squeezed_dims(operation, shape)
        yield read, [place for place in range(len(shape)) if place not in gone][dim]
    elif operation.name == "expand":
        before = dim - (graph.tensors[value.number].dim() - len(shape))
        if before >= 0 and shape[before] == graph.tensors[value.number].shape[dim]:
            yield read, before
    elif operation.name in operators.SPLITS:
        if dim == operation.bound().get("dim", 0) % len(shape):
            found[index].add(dim)
        yield read, dim
    elif operation.name not in _LAYERS:
        size = graph.tensors[value.number].shape[dim]
        place = dim - graph.tensors[value.number].dim()
        for other in operation.reads:
            of_other = graph.tensors[other.number].shape
            if len(of_other) >= -place and of_other[place] == size:
                yield other, place + len(of_other)


def permuted_dims(operation: Operation, count: int) -> list[int]:
    """Return which dimension of its argument each dimension of an operation's output is.

    Args:
        operation: A ``t``, ``transpose`` or ``permute``.
        count: Number of dimensions.
    """
    if operation.name == "permute":
        return [place % count for place in operation.args[1]]
    order = list(range(count))
    if count:
        a, b = operation.args[1:3] if operation.name == "transpose" else (0, -1)
        order[a], order[b] = order[b], order[a]
    return order


def squeezed_dims(operation: Operation, shape: Sequence[int]) -> set[int]:
    """Return the dimensions of size 1 that a ``squeeze`` removes.

    Args:
        operation: A ``squeeze``.
        shape: Shape of its argument.
    """
    requested = operation.bound().get("dim", range(len(shape)))
    return {
        place % len(shape)
        for place in ([requested] if isinstance(requested, int) else requested)
        if shape[place] == 1
    }
