"""Outputs: every tensor that a network returns, whatever container or object it is in.

Two networks compute the same function only if all that they return is equal: booleans and whole numbers as well as floating-point
tensors, in dataclasses, named tuples and objects of any class as well as in tuples. So outputs are looked into attribute by attribute,
and an output that cannot be looked into is refused rather than left out of the comparison.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Collection, Iterator, Mapping, Sequence, Set, ValuesView
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Opaque", "leaves", "pinning", "tensors"]

_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type, enum.Enum, type(...), type(NotImplemented)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
"""Types of values that hold no tensor."""
_CLOSED = (
    *(Iterator, nn.Module, functools.partial, types.FunctionType, types.MethodType, types.BuiltinFunctionType),
    *(types.CodeType, types.FrameType, types.ModuleType),
)
"""Types of values whose tensors cannot be listed without running code or reaching what is no output."""


class Opaque(ValueError):
    """An output that cannot be looked into."""


def leaves(output: Any, name: str) -> dict[str, Any]:
    """Return the tensors and plain values of an output by the expression that reaches them, such as ``output[1].logits``.

    Args:
        output: What a network returned: a tensor or any nesting of containers and objects.
        name: The network's class, for the error message.

    Raises:
        Opaque: If a part is of a kind that cannot be looked into: a function, a generator, a module, a NumPy array, a tensor without
            entries of its own.
    """
    listed: dict[str, Any] = {}
    entered: set[int] = set()

    def enter(value: Any, path: str) -> None:
        if isinstance(value, Tensor):
            if value.is_nested or value.is_quantized or value.is_meta:
                raise _opaque(name, path, value)
            listed[path] = value if value.layout == torch.strided else value.to_dense()
            for attribute, part in vars(value).items():
                enter(part, f"{path}.{attribute}")
        elif isinstance(value, _PLAIN):
            listed[path] = value
        elif isinstance(value, Set) and all(isinstance(part, _PLAIN) for part in value):
            listed[path] = frozenset(value)
        elif id(value) not in entered:
            entered.add(id(value))
            if isinstance(value, (*_CLOSED, Set)):  # the order of a set of tensors differs from run to run
                raise _opaque(name, path, value)
            parts = list(_parts(value))
            if not parts and not isinstance(value, Collection) and not hasattr(value, "__dict__"):
                raise _opaque(name, path, value)
            for step, part in parts:
                enter(part, path + step)

    enter(output, "output")
    return listed


def tensors(output: Any, name: str) -> tuple[Tensor, ...]:
    """Return the tensors of an output, floating-point or complex; booleans and whole numbers are converted to float64.

    Args:
        output: What a network returned.
        name: The network's class, for the error message.

    Raises:
        Opaque: If a part of the output cannot be looked into.
    """
    held = (leaf for leaf in leaves(output, name).values() if isinstance(leaf, Tensor))
    return tuple(leaf if leaf.is_floating_point() or leaf.is_complex() else leaf.double() for leaf in held)


@contextmanager
def pinning(network: nn.Module) -> Iterator[None]:
    """Let ``network`` return a flat tuple of all its tensors inside the context, so that a recording lists each as an output.

    Args:
        network: A network; a hook is registered on it and removed again.
    """
    handle = network.register_forward_hook(lambda module, _, output: tensors(output, type(module).__name__))
    try:
        yield
    finally:
        handle.remove()


def _opaque(name: str, path: str, value: Any) -> Opaque:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return Opaque(
        f"compaction cannot look into {path} of {name}.forward, a value of type {kind}, so it cannot compare it; return tensors and"
        " numbers in tuples, lists, dicts or objects with attributes"
    )


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Each part of a container or object with the expression that selects it: items first, then attributes."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", value[key]) for key in value)
    elif isinstance(value, (Sequence, ValuesView)):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    attributes = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            mangled = f"_{kind.__name__.lstrip('_')}{slot}" if slot.startswith("__") and not slot.endswith("__") else slot
            if slot not in ("__dict__", "__weakref__") and hasattr(value, mangled):
                attributes[mangled] = getattr(value, mangled)
    yield from ((f".{attribute}", part) for attribute, part in attributes.items())
