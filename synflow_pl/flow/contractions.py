"""Contractions: rules for convolutions and matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synflow_pl.flow.builder import Builder, Rule
from synflow_pl.flow.convolution import convolve
from synflow_pl.flow.gates import contract
from synflow_pl.flow.meetings import Product
from synflow_pl.graph import operators
from synflow_pl.graph.trace import Operation

__all__ = ["CONTRACTIONS"]


def _convolution(builder: Builder, operation: Operation) -> None:
    signal, weight, _, *geometry = operation.args
    if builder.carries(signal) and builder.carries(weight) and not builder.in_weights:
        # A kernel that is computed from the input is a gate.
        builder.gated = True
        if builder.open_gates:
            meeting = Product(
                signal.number, weight.number, lambda x, y: convolve(x, y, None, *geometry)
            )
            return builder.add_node(
                operation, meeting, builder.resolve(signal), builder.resolve(weight)
            )
        kernel = builder.constant(builder.tensor(weight).abs())
    else:
        kernel = builder.factor(weight)
    if not builder.carries(signal) and not builder.in_weights:
        return builder.add_fallback(operation)
    builder.add_node(
        operation, convolve, builder.factor(signal), kernel, None, *geometry, contraction=True
    )


def _deformable(builder: Builder, operation: Operation) -> None:
    """Translate a deformable convolution: on uniform flow it equals a plain convolution.

    Offsets and modulation factors that are signals are gates.
    """
    signal, weight, offset, factor, _, *numbers = operation.args
    if not builder.carries(signal):
        return builder.add_fallback(operation)
    geometry = (numbers[0:2], numbers[2:4], numbers[4:6], False, [0, 0], numbers[6])
    gates = [builder.resolve(value) for value in (offset, factor) if builder.carries(value)]
    builder.gated |= bool(gates)
    if gates and builder.open_gates:
        return builder.add_node(
            operation,
            _deformed,
            builder.factor(signal),
            builder.factor(weight),
            geometry,
            *gates,
            contraction=True,
        )
    builder.add_node(
        operation,
        convolve,
        builder.factor(signal),
        builder.factor(weight),
        None,
        *geometry,
        contraction=True,
    )


def _deformed(signal: Tensor, weight: Tensor, geometry: tuple[Any, ...], *gates: Tensor) -> Tensor:
    """Compute the convolution of a signal that depends on every gate."""
    return convolve(signal + sum(gate.mean() for gate in gates), weight, None, *geometry)


def _product(builder: Builder, operation: Operation) -> None:
    *added, left, right = operation.args
    both = builder.carries(left) and builder.carries(right)
    if added and builder.carries(added[0]):
        # A signal plus a product (a bias that is computed from the input): it passes on its flow if
        # the product carries none.
        if not (builder.carries(left) or builder.carries(right)):
            return builder.add_identity(operation, added[0])
        return builder.add_fallback(operation)
    if both and not builder.in_weights:
        return contract(builder, operation, left, right)
    builder.add_node(
        operation, torch.matmul, builder.factor(left), builder.factor(right), contraction=True
    )


def _trilinear(builder: Builder, operation: Operation) -> None:
    """Translate a bilinear layer: the first of two signals carries the flow, the other gates it."""
    *factors, first, second, third, summed, unrolled = operation.args
    signals = [value for value in factors if builder.carries(value)]
    gates = [] if builder.in_weights or builder.open_gates else signals[1:]
    builder.gated |= len(signals) > 1 and not builder.in_weights
    arguments = [
        builder.constant(torch.ones_like(builder.tensor(value)))
        if value in gates
        else builder.factor(value)
        for value in factors
    ]
    builder.add_node(
        operation,
        torch.ops.aten._trilinear.default,
        *arguments,
        first,
        second,
        third,
        summed,
        unrolled,
        contraction=True,
    )


CONTRACTIONS: dict[str, Rule] = {
    "convolution": _convolution,
    "_trilinear": _trilinear,
    "deform_conv2d": _deformable,
    **dict.fromkeys(operators.MATRIX_PRODUCTS, _product),
}
