"""Outputs: lists every tensor that a network returns, in any container or object.

Booleans and integers count as well as floating-point tensors. Dataclasses, named tuples and objects
of any class are searched attribute by attribute. A graph lists all of these tensors as outputs, and
two networks compute the same function only if all of them are equal. A part that cannot be searched
is named, so that a comparison can refuse it.
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
"""Types of values that cannot be searched without running code or leaving the output."""
_LISTED = (Mapping, Sequence, ValuesView)
"""Types of containers whose items are listed."""


class Opaque(ValueError):
    """An output that cannot be searched for tensors.

    Args:
        place: Expression of the part of the output, and its type.
        who: Name of the component that needs its tensors.
    """

    def __init__(self, place: str, who: str) -> None:
        super().__init__(
            f"{who} cannot look into {place}, so it cannot see its tensors; return tensors and"
            " numbers in tuples, lists, dicts or objects with attributes"
        )


def leaves(output: Any, name: str) -> dict[str, Any]:
    """Return the tensors and plain values of an output by their expressions.

    Args:
        output: Output of a network: a tensor or any nesting of containers and objects.
        name: Class name of the network, for the error message.

    Returns:
        Tensors and plain values by the expression that reaches them, such as ``output[1].logits``.

    Raises:
        Opaque: If a part cannot be searched: a function, a generator, a module, a NumPy array, a
            tensor without entries of its own.
    """
    listed, opaque = _walk(output)
    if opaque:
        raise Opaque(_place(name, *opaque[0]), "compaction")
    return listed


def tensors(output: Any, name: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], str]:
    """Return the tensors of an output, floating-point ones and others, and its first opaque part.

    Args:
        output: Output of a network.
        name: Class name of the network.

    Returns:
        Each floating-point and complex tensor once; each tensor of booleans or integers once,
        converted to float32; and the place and type of the first part that cannot be searched, for
        :class:`Opaque`, "" if there is none.
    """
    listed, opaque = _walk(output)
    held = {id(leaf): leaf for leaf in listed.values() if isinstance(leaf, Tensor)}.values()
    numbers = tuple(leaf for leaf in held if leaf.is_floating_point() or leaf.is_complex())
    decisions = tuple(
        leaf.float() for leaf in held if not (leaf.is_floating_point() or leaf.is_complex())
    )
    return numbers, decisions, _place(name, *opaque[0]) if opaque else ""


def _walk(output: Any) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Return the tensors and plain values by their expressions, and the opaque parts."""
    listed: dict[str, Any] = {}
    opaque: list[tuple[str, Any]] = []
    # strong references, since the id of a deleted object may be reused
    entered: dict[int, Any] = {}

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
            # A set of tensors has no fixed order.
            parts = [] if isinstance(value, (*_CLOSED, Set)) else list(_parts(value))
            empty = isinstance(value, _LISTED) or hasattr(value, "__dict__")
            if not parts and (isinstance(value, (*_CLOSED, Set)) or not empty):
                opaque.append((path, value))
            for key, part in parts:
                enter(part, path + key)

    enter(output, "output")
    return listed, opaque


def _place(name: str, path: str, value: Any) -> str:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return f"{path} of {name}.forward, a value of type {kind}"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Return each part of a container or object with the expression that selects it.

    Items come first, then attributes.
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
