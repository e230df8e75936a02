"""Aliasing: translates writes in place to operations that return the new value.

A graph holds pure operations only. Where a network writes to a tensor in place, the graph has an
operation that returns the new value. Where it writes to a view (a slice, say), the new value is
scattered into the base tensor, and other views of that tensor are recomputed from it when they are
next read.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from synflow_pl.graph.operation import bind

__all__ = ["functional_form", "is_view", "scattered", "writes", "written_tensors"]

aten = torch.ops.aten


@cache
def writes(target: Any) -> tuple[str, ...]:
    """Return the names of the arguments that an operation writes to."""
    return tuple(
        argument.name
        for argument in target._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def written_tensors(target: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors that a call of an operation writes to."""
    given = bind(target, args, kwargs)
    leaves = tree_leaves([given.get(name) for name in writes(target)])
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@cache
def is_view(target: Any) -> bool:
    """Return whether an operation returns views of its first argument and writes nothing."""
    returned = target._schema.returns
    return (
        bool(returned)
        and returned[0].alias_info is not None
        and not returned[0].alias_info.is_write
    )


_FORMS = {
    aten.bernoulli_.float: aten.bernoulli.p,
    aten.bernoulli_.Tensor: aten.bernoulli.Tensor,
    aten.normal_.default: aten.normal_functional.default,
    aten.random_.default: aten.random.default,
}


@cache
def functional_form(target: Any) -> Any:
    """Return an operation without its write: ``add`` for ``add_`` and for ``add(..., out=)``.

    Operations without such a form are returned unchanged.
    """
    if target in _FORMS:
        return _FORMS[target]
    space, _, name = target._schema.name.partition("::")
    wanted = [argument.name for argument in target._schema.arguments]
    outs = [argument.name for argument in target._schema.arguments if argument.is_out]
    packet = getattr(getattr(torch.ops, space), name.removesuffix("_") if not outs else name, None)
    if packet is None:
        return target
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    same_name = [
        overload for overload in overloads if overload._overloadname == target._overloadname
    ]
    for overload in (*same_name, *overloads):
        given = [argument.name for argument in overload._schema.arguments]
        if given == [name for name in wanted if name not in outs] and not writes(overload):
            return overload
    return target


def scattered(
    view: Any, rest: tuple[Any, ...], kwargs: dict[str, Any], index: int, shape: torch.Size
) -> tuple[Any, tuple[Any, ...]]:
    """Return the operation that writes the new value of a view to its base tensor.

    Args:
        view: Operation that made the view.
        rest: Arguments of ``view`` after the tensor.
        kwargs: Keyword arguments of ``view``.
        index: Index of the view among the outputs of ``view``.
        shape: Shape of the base tensor.

    Returns:
        The operation and its arguments after the tensors. ``*_scatter`` takes the base tensor and
        the view's new value, any other operation the new value alone. ``None`` as the operation
        means that base and view are equal.
    """
    given = bind(view, (None, *rest), kwargs)
    name = view._schema.name.partition("::")[2]
    dim = given.get("dim", 0)
    if name in ("alias", "detach", "lift_fresh", "view_as"):
        return None, ()
    if name == "slice":
        return aten.slice_scatter.default, (
            dim,
            given.get("start"),
            given.get("end"),
            given.get("step", 1),
        )
    if name == "select":
        return aten.select_scatter.default, (dim, given["index"])
    if name == "unbind":
        return aten.select_scatter.default, (dim, index)
    if name in ("split", "split_with_sizes"):
        size = given.get("split_size", given.get("split_sizes"))
        sizes: list[int] = (
            list(size) if isinstance(size, (list, tuple)) else [int(size or 1)] * shape[dim]
        )
        start = sum(sizes[:index])
        return aten.slice_scatter.default, (dim, start, min(start + sizes[index], shape[dim]), 1)
    if name == "diagonal":
        return aten.diagonal_scatter.default, (
            given.get("offset", 0),
            given.get("dim1", 0),
            given.get("dim2", 1),
        )
    if name == "t":
        return aten.t.default, ()
    if name == "transpose":
        return aten.transpose.int, (given["dim0"], given["dim1"])
    if name == "permute":
        places = [place % len(shape) for place in given["dims"]]
        return aten.permute.default, (sorted(range(len(places)), key=places.__getitem__),)
    if name in ("view", "_reshape_alias", "unsqueeze", "squeeze", "unflatten", "reshape") or (
        name == "expand" and "size" in given
    ):
        return aten.view.default, (list(shape),)
    return aten.as_strided_scatter.default, ()
