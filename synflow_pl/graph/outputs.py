"""Outputs: every tensor that a network returns, whatever container or object it is in.

Booleans and whole numbers count as well as floating-point tensors, and dataclasses, named tuples
and objects of any class are looked
into attribute by attribute: a recording lists all of these tensors as outputs, and two networks
compute the same function only if all of them are equal. A part that cannot be looked into is named,
so that a comparison can refuse it.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Iterator, Mapping, Sequence, Set, ValuesView
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Opaque", "leaves", "tensors"]

_PLAIN = (
    *(
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        range,
        slice,
        type,
        enum.Enum,
        type(...),
        type(NotImplemented),
    ),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
"""Types of values that hold no tensor."""
_CLOSED = (
    *(
        Iterator,
        nn.Module,
        functools.partial,
        types.FunctionType,
        types.MethodType,
        types.BuiltinFunctionType,
    ),
    *(types.CodeType, types.FrameType, types.ModuleType),
)
"""Types of values whose tensors cannot be listed without running code or reaching what is no
output.
"""
_LISTED = (Mapping, Sequence, ValuesView)
"""Types of containers whose items are listed."""


class Opaque(ValueError):
    """An output that cannot be looked into.

    Args:
        place: Which part of the output it is, and its type.
        who: What would need its tensors.
    """

    def __init__(self, place: str, who: str) -> None:
        super().__init__(
            f"{who} cannot look into {place}, so it cannot see its tensors; return tensors and numbers in tuples, lists, dicts or"
            " objects with attributes"
        )


def leaves(output: Any, name: str) -> dict[str, Any]:
    """Return the tensors and plain values of an output by the expression that reaches them, such as
    ``output[1].logits``.

    Args:
        output: What a network returned: a tensor or any nesting of containers and objects.
        name: The network's class, for the error message.

    Raises:
        Opaque: If a part is of a kind that cannot be looked into: a function, a generator, a
            module, a NumPy array, a tensor without entries of its own.
    """
    listed, opaque = _walk(output)
    if opaque:
        raise Opaque(_place(name, *opaque[0]), "compaction")
    return listed


def tensors(output: Any, name: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], str]:
    """Return the tensors of an output, its decisions in floating point, and the first part that
    cannot be looked into.

    Args:
        output: What a network returned.
        name: The network's class.

    Returns:
        Each floating-point and complex tensor once; each tensor of booleans or whole numbers once,
        converted to float32; and the place and type of the part, for :class:`Opaque`, "" if there
        is none.
    """
    listed, opaque = _walk(output)
    held = {id(leaf): leaf for leaf in listed.values() if isinstance(leaf, Tensor)}.values()
    numbers = tuple(leaf for leaf in held if leaf.is_floating_point() or leaf.is_complex())
    decisions = tuple(
        leaf.float() for leaf in held if not (leaf.is_floating_point() or leaf.is_complex())
    )
    return numbers, decisions, _place(name, *opaque[0]) if opaque else ""


def _walk(output: Any) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Return the tensors and plain values by the expression that reaches them, and the parts that
    cannot be looked into.
    """
    listed: dict[str, Any] = {}
    opaque: list[tuple[str, Any]] = []
    entered: dict[int, Any] = {}  # strong references, or an id could be given to another object

    def enter(value: Any, path: str) -> None:
        if isinstance(value, Tensor):
            if value.is_nested or value.is_quantized or value.is_meta:
                opaque.append((path, value))
                return
            listed[path] = value if value.layout == torch.strided else value.to_dense()
            for attribute, part in vars(value).items():
                enter(part, f"{path}.{attribute}")
        elif isinstance(value, _PLAIN):
            listed[path] = value
        elif isinstance(value, Set) and all(isinstance(part, _PLAIN) for part in value):
            listed[path] = frozenset(value)
        elif id(value) not in entered:
            entered[id(value)] = value
            parts = (
                [] if isinstance(value, (*_CLOSED, Set)) else list(_parts(value))
            )  # a set of tensors has no order of its own
            empty = isinstance(value, _LISTED) or hasattr(value, "__dict__")
            if not parts and (isinstance(value, (*_CLOSED, Set)) or not empty):
                opaque.append((path, value))
            for step, part in parts:
                enter(part, path + step)

    enter(output, "output")
    return listed, opaque


def _place(name: str, path: str, value: Any) -> str:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return f"{path} of {name}.forward, a value of type {kind}"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Each part of a container or object with the expression that selects it: items first, then
    attributes.
    """
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", value[key]) for key in value)
    elif isinstance(value, _LISTED):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    attributes = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            mangled = (
                f"_{kind.__name__.lstrip('_')}{slot}"
                if slot.startswith("__") and not slot.endswith("__")
                else slot
            )
            if slot not in ("__dict__", "__weakref__") and hasattr(value, mangled):
                attributes[mangled] = getattr(value, mangled)
    yield from ((f".{attribute}", part) for attribute, part in attributes.items())
