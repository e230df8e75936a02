"""Fallback: what replaces an operation without a rule, and the error that this makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from synflow_pl.flow.node import Node

__all__ = ["Fallback", "fallback_errors", "fallback_notes"]


@dataclass(frozen=True)
class Fallback:
    """Replacement of an operation without a rule: the identity if shapes agree, else the mean.

    Attributes:
        operation: Name of the operation.
        shape: Shape of its output.
        exact: The operation as a function of the flow, with its other arguments as they were
            traced.
    """

    operation: str
    shape: torch.Size
    exact: Callable[[Tensor], Tensor]

    def __call__(self, signal: Tensor) -> Tensor:
        return signal if signal.shape == self.shape else signal.mean().expand(self.shape)

    def relative_error(self, signal: Tensor) -> float | None:
        """Return the relative error of the replacement on this flow, in [0, inf).

        It is the sum of absolute differences over the sum of absolute values of the operation's
        output.

        Returns:
            The error, or ``None`` if it is undefined: the operation cannot be computed on this flow
            (it needs complex numbers, or the shape that an earlier fallback changed), or its output
            is zero throughout or not finite.
        """
        try:
            exact = self.exact(signal.detach())
            error = float((exact - self(signal)).abs().sum() / exact.abs().sum())
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
        return error if math.isfinite(error) else None


def fallback_errors(
    nodes: Sequence[Node], evaluate: Callable[..., Tensor]
) -> dict[str, float | None]:
    """Return the largest :meth:`Fallback.relative_error` of all calls of an operation, by its name.

    Args:
        nodes: Nodes of the linear network.
        evaluate: :meth:`LinearNetwork.flow` with the weights filled in.
    """
    errors: dict[str, float | None] = {}

    def watch(node: Node | None, arguments: Sequence[Any]) -> None:
        if node is not None and isinstance(node.function, Fallback):
            name = node.function.operation
            known = (errors.get(name), node.function.relative_error(arguments[0]))
            errors[name] = max((error for error in known if error is not None), default=None)

    if any(isinstance(node.function, Fallback) for node in nodes):
        with torch.no_grad():
            evaluate(watch=watch)
    return errors


def fallback_notes(errors: Mapping[str, float | None]) -> tuple[str, ...]:
    """Return a note that names the operations without a rule, or no note if there are none.

    Args:
        errors: Result of :func:`fallback_errors`.
    """
    names = ", ".join(
        f"{name} (off by {error:.0%})" if error is not None else name
        for name, error in errors.items()
    )
    if not names:
        return ()
    return (f"operations without a rule, taken for the identity or an average: {names}",)
