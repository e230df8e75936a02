"""Arithmetic: rules for sums, differences, products and quotients entry by entry."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from synflow_pl.flow.builder import Builder, Rule
from synflow_pl.flow.gates import gate, gated
from synflow_pl.flow.meetings import Gate
from synflow_pl.graph.trace import Operation

__all__ = ["ARITHMETIC", "add"]


def add(builder: Builder, operation: Operation) -> None:
    """Translate a sum or a difference of signals or weights; other terms are zero."""
    left, right = operation.args[:2]
    if not (builder.carries(left) and builder.carries(right)):
        return builder.add_identity(operation, left if builder.carries(left) else right)
    if operation.name == "sub" and builder.resolve(left) == builder.resolve(right):
        builder.difference_from[operation.outputs[0].number] = builder.resolve(left)  # type: ignore[union-attr]
    for signal, error in ((left, right), (right, left)):
        if builder.difference_from.get(builder.resolve(error).number) == builder.resolve(signal):
            # A straight-through estimator: x + (round(x) - x).detach().
            return builder.add_identity(operation, signal)
    # A difference becomes a sum, since flow is non-negative.
    alpha = abs(operation.kwargs.get("alpha", 1))
    function = torch.add if alpha == 1 else partial(torch.add, alpha=alpha)
    builder.add_node(operation, function, builder.resolve(left), builder.resolve(right))


def _scale(builder: Builder, operation: Operation) -> None:
    left, right = operation.args[:2]
    if builder.carries(left) and builder.carries(right):
        if builder.in_weights:
            # Both factors of a factorised weight stay variables.
            return builder.add_node(
                operation, torch.mul, builder.resolve(left), builder.resolve(right)
            )
        return gate(builder, operation, left, right)
    builder.add_node(operation, torch.mul, builder.factor(left), builder.factor(right))


def _divide(builder: Builder, operation: Operation) -> None:
    above, below = operation.args[:2]
    if not builder.carries(below):
        return builder.add_node(operation, torch.div, builder.resolve(above), builder.factor(below))
    # A divisor that is a signal is a normaliser or a gate and counts as one. A divisor of weights
    # keeps its traced value.
    if not builder.carries(above):
        return builder.add_identity(operation, below)
    if builder.in_weights:
        return builder.add_node(
            operation, torch.div, builder.resolve(above), builder.gain(builder.tensor(below))
        )
    gated(builder, operation, above, below, shuts=False)


def _add_product(builder: Builder, operation: Operation) -> None:
    """Translate ``addcmul(a, b, c)``, which is a + b * c."""
    base, left, right = operation.args[:3]
    product: Any
    if builder.carries(left) and builder.carries(right):
        builder.gated = True
        product = builder.resolve(left)
        if builder.open_gates:
            return builder.add_node(
                operation,
                Gate(left.number, right.number),
                product,
                builder.resolve(right),
                builder.operand(base),
            )
    elif builder.carries(left) or builder.carries(right):
        product = left if builder.carries(left) else right
        factor = builder.factor(right if builder.carries(left) else left)
        builder.add_node(
            operation, _multiply_add, builder.operand(base), builder.resolve(product), factor
        )
        return
    else:
        return builder.add_identity(operation, base)
    builder.add_node(operation, torch.add, builder.operand(base), product)


def _multiply_add(base: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return base + left * right


ARITHMETIC: dict[str, Rule] = {
    "add": add,
    "sub": add,
    "mul": _scale,
    "div": _divide,
    "addcmul": _add_product,
}
