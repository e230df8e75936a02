"""Operation: one ATen call of a graph, between numbered values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Operation", "Value", "bind", "map_values", "values_in"]


@dataclass(frozen=True)
class Value:
    """A reference to a tensor of a graph by its number."""

    number: int


@dataclass(frozen=True)
class Operation:
    """One ATen call ``outputs = target(*args, **kwargs)``, with a :class:`Value` for each tensor.

    Attributes:
        target: The ATen operator.
        args: Positional arguments.
        kwargs: Keyword arguments.
        outputs: Outputs; ``None`` for those that are not tensors.
        module: Name of the innermost module that was running, "" for the network itself.
    """

    target: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Value | None, ...]
    module: str = ""

    @property
    def name(self) -> str:
        """Return the name of the operation without namespace and overload, such as ``add``."""
        return self.target._schema.name.split("::")[1].rstrip("_") or self.target._schema.name

    @property
    def reads(self) -> list[Value]:
        """Return the values that the operation reads, in order."""
        return list(values_in((self.args, self.kwargs)))

    @property
    def results(self) -> list[Value]:
        """Return the outputs that are tensors, in order."""
        return [output for output in self.outputs if output is not None]

    def arguments(self, tensor: Callable[[Value], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and the keyword arguments with a tensor in place of each value.

        Args:
            tensor: Function from a value to its tensor.
        """
        return map_values(tensor, self.args), map_values(tensor, self.kwargs)

    def run(self, tensor: Callable[[Value], Any]) -> dict[int, Tensor]:
        """Run the operation on other tensors and return its results by number.

        Args:
            tensor: Function from a value to its tensor.
        """
        args, kwargs = self.arguments(tensor)
        output = self.target(*args, **kwargs)
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        return {
            value.number: result
            for value, result in zip(self.outputs, outputs, strict=True)
            if value is not None
        }

    def bound(self) -> dict[str, Any]:
        """Return the arguments by their names in the schema of the operation."""
        return bind(self.target, self.args, self.kwargs)


def bind(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an ATen call by their names in the schema of the operator."""
    names = [argument.name for argument in target._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def values_in(argument: Any) -> Iterator[Value]:
    """Yield the values in a nested argument of an ATen operator, in order."""
    # A recursion over the three containers of ATen's arguments takes a tenth of the time of
    # torch.utils._pytree, and these functions are called for every operation of a graph.
    if type(argument) is Value:
        yield argument
    elif type(argument) in (tuple, list):
        for item in argument:
            yield from values_in(item)
    elif type(argument) is dict:
        for item in argument.values():
            yield from values_in(item)


def map_values(function: Callable[[Value], Any], argument: Any) -> Any:
    """Return a nested argument of an ATen operator with each value replaced.

    Args:
        function: Function from a value to what takes its place.
        argument: A value, or a tuple, list or dict with values in it at any depth.
    """
    kind = type(argument)
    if kind is Value:
        return function(argument)
    if kind is tuple or kind is list:
        return kind(map_values(function, item) for item in argument)
    if kind is dict:
        return {key: map_values(function, item) for key, item in argument.items()}
    return argument
