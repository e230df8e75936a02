"""Node: one call in the positive linear network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from synflow_pl.graph.operation import Value, values_in

__all__ = ["Node", "fill"]


@dataclass(frozen=True)
class Node:
    """One call ``outputs = function(*args, **kwargs)``, with a :class:`Value` for each tensor.

    Attributes:
        name: Name of the operation that the node was translated from.
        function: Function that the node calls.
        args: Positional arguments.
        kwargs: Keyword arguments.
        outputs: Numbers of the outputs.
        contraction: Whether weights act on the signal in this node, as in a convolution or a matrix
            product.
        weight: Name of the parameter that acts on the signal, if it is a plain tensor of shape
            (units, inputs, kernel...) that no other node reads. Such a node can be computed on a
            block of its weight (:class:`synflow_pl.flow.Block`).
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    contraction: bool
    weight: str | None = None

    @property
    def operands(self) -> list[int]:
        """Return the numbers of the values that this node reads."""
        return [value.number for value in values_in((self.args, self.kwargs))]


def fill(argument: Any, values: Mapping[int, Any]) -> Any:
    """Return an argument with each :class:`Value` replaced by the tensor of its number."""
    if type(argument) is Value:
        return values[argument.number]
    if type(argument) in (tuple, list):
        return [fill(item, values) for item in argument]
    return argument
