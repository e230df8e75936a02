"""Aliasing: what a write to one view of a tensor means for the tensor and its other views.

A recording has pure operations only. So where a network writes to a tensor in place, the recording
has an operation that returns the new value. Where it writes to a view (a slice, say), that value is
scattered into the old whole, and another view of the same tensor is taken anew from the new whole
when it is read.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

__all__ = ["functional_form", "is_view", "scattered", "writes"]

aten = torch.ops.aten


@cache
def writes(target: Any) -> tuple[str, ...]:
    """Names of the arguments that an operation writes to."""
    return tuple(
        argument.name
        for argument in target._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    )


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
    """The operation without the write: ``add`` of ``add_``, or of ``add(..., out=)``. The same
    operation where there is none.
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
    """How a view's new value becomes that of what it is a view of.

    Args:
        view: the operation that made the view.
        rest: its arguments behind the tensor.
        kwargs: its other arguments.
        index: which of its outputs the view is.
        shape: Shape of the tensor that was viewed.

    Returns:
        An operation and its arguments behind the tensors. ``*_scatter`` takes the old whole and the
        new part, any other operation the new part alone. ``None`` as the operation means that both
        are the same.
    """
    given = {
        **dict(zip([argument.name for argument in view._schema.arguments][1:], rest, strict=False)),
        **kwargs,
    }
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
