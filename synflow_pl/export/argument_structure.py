"""Structure of the arguments of a call: what a file contains of them besides the tensors.

In a structure, ``{"tensor": name}`` stands for a tensor, ``{"list": [...]}`` and the like for a
container, and anything else for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["arguments_by_name", "fill_structure", "match_structure", "structure_of"]

_CONSTANTS = (bool, int, float, str, type(None))
"""Types of arguments other than tensors that a file can contain."""

_CONTAINERS: dict[str, Any] = {"list": list, "tuple": tuple, "dict": dict}
"""Containers that a file can contain, by name."""


def arguments_by_name(
    positional: tuple[Any, ...], keywords: Mapping[str, Any], parameters: tuple[str, ...]
) -> dict[str, Any]:
    """Return the arguments of a call by name; those beyond the parameters by their index.

    Args:
        positional: Arguments that are given by position.
        keywords: Arguments that are given by keyword.
        parameters: Names of the parameters that can be given by position.
    """
    names = [*parameters, *map(str, range(len(parameters), len(positional)))]
    return {**dict(zip(names, positional, strict=False)), **keywords}


def structure_of(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return the structure of an argument and add its tensors to ``tensors`` by name.

    Args:
        value: Argument, or a part of one.
        name: Name of the argument, followed by keys and indices in it: ``batch.boxes.0``.
        tensors: Tensors by name, to which those of the argument are added in place.

    Raises:
        ValueError: If a part of the argument can not be written to a file.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    for kind, container in _CONTAINERS.items():
        if type(value) is container:
            parts: Any = (
                {str(key): structure_of(x, f"{name}.{key}", tensors) for key, x in value.items()}
                if kind == "dict"
                else [structure_of(x, f"{name}.{i}", tensors) for i, x in enumerate(value)]
            )
            return {kind: parts}
    if not isinstance(value, _CONSTANTS):
        raise ValueError(
            f"example_input: {name} is a {type(value).__name__}, which cannot be written to a file;"
            " expected tensors, numbers, strings, None, and lists, tuples and dictionaries of them"
        )
    return value


def match_structure(structure: Any, value: Any, name: str, tensors: dict[str, Tensor]) -> None:
    """Check an argument against a structure and add its tensors to ``tensors`` by name.

    Args:
        structure: Structure that the argument must have.
        value: Argument, or a part of one.
        name: Name of the argument, as in :func:`structure_of`.
        tensors: Tensors by name, to which those of the argument are added in place.

    Raises:
        ValueError: If they differ.
    """
    kind, parts = _parts(structure)
    if kind == "tensor":
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}: {value!r}, expected a tensor")
        tensors[name] = value
    elif kind:
        fits = type(value) is _CONTAINERS[kind] and (
            parts.keys() == {str(key) for key in value}
            if kind == "dict"
            else len(parts) == len(value)
        )
        if not fits:
            keys = f" with {', '.join(parts)}" if kind == "dict" else f" of {len(parts)}"
            raise ValueError(f"{name}: a {type(value).__name__}, expected a {kind}{keys}")
        values = value.items() if kind == "dict" else enumerate(value)
        for key, part in values:
            child = parts[str(key) if kind == "dict" else key]
            match_structure(child, part, f"{name}.{key}", tensors)
    elif isinstance(value, Tensor) or type(value) is not type(structure) or value != structure:
        raise ValueError(f"{name}: {value!r}, and the file was written for {structure!r}")


def fill_structure(structure: Any, tensor: Callable[[str], Tensor]) -> Any:
    """Return the argument that has a structure.

    Args:
        structure: Structure of the argument.
        tensor: Function that returns the tensor of a name.
    """
    kind, parts = _parts(structure)
    if not kind:
        return structure
    if kind == "tensor":
        return tensor(parts)
    if kind == "dict":
        return {key: fill_structure(part, tensor) for key, part in parts.items()}
    return _CONTAINERS[kind](fill_structure(part, tensor) for part in parts)


def _parts(structure: Any) -> tuple[str, Any]:
    """Return the kind of a structure and its content, or "" for what stands for itself."""
    return next(iter(structure.items())) if isinstance(structure, dict) else ("", None)
