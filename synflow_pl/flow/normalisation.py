"""Normalisation: rules that replace a normalisation by its |gain|, without its mean.

For BatchNorm the gain is divided by the running standard deviation. A division by the deviation of
the flow itself would make the network nonlinear, and before LayerNorm, whose output does not depend
on the scale of its input, every score would cancel to zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synflow_pl.flow.builder import Builder, Rule
from synflow_pl.graph import operators
from synflow_pl.graph.trace import Operation, Value

__all__ = ["NORMALISATION_RULES"]


def _batch_norm(builder: Builder, operation: Operation) -> None:
    given = operation.bound()
    variance, weight = given.get("running_var"), given.get("weight")
    channels = (-1,) + (1,) * (builder.tensor(given["input"]).dim() - 2)
    if builder.in_weights:
        # A standardised weight is divided by its own deviation, as traced.
        inverse = operation.outputs[2]
        assert inverse is not None
        gain = builder.tensor(inverse)
    elif isinstance(variance, Value):
        eps = given["eps"] if "eps" in given else given["epsilon"]  # cuDNN and MIOpen spell it out
        gain = (builder.tensor(variance) + eps).rsqrt()
    else:
        # Without running statistics, the batch is normalised as by an instance norm.
        return _gain(builder, operation, given["input"], weight, channels)
    gain = gain if weight is None else gain * builder.tensor(weight)
    if builder.in_weights and builder.open_gates:
        dims = tuple(dim for dim in range(builder.tensor(given["input"]).dim()) if dim != 1)
        return builder.add_node(operation, _with_mean, builder.resolve(given["input"]), dims)
    builder.add_node(
        operation,
        torch.mul,
        builder.resolve(given["input"]),
        builder.gain(gain.reshape(channels), weight),
    )


def _with_mean(weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Connect each entry of a standardised weight to itself and to the entries in its mean."""
    return weight + weight.mean(dims, keepdim=True)


def _layer_norm(builder: Builder, operation: Operation) -> None:
    given = operation.bound()
    if builder.in_weights and builder.open_gates:
        dims = tuple(range(-len(given["normalized_shape"]), 0))
        return builder.add_node(operation, _with_mean, builder.resolve(given["input"]), dims)
    _gain(builder, operation, given["input"], given.get("weight"))


def _group_norm(builder: Builder, operation: Operation) -> None:
    given = operation.bound()
    channels = (-1,) + (1,) * (builder.tensor(given["input"]).dim() - 2)
    _gain(builder, operation, given["input"], given.get("weight"), channels)


def _gain(
    builder: Builder,
    operation: Operation,
    signal: Value,
    weight: Any,
    shape: tuple[int, ...] | None = None,
) -> None:
    if not isinstance(weight, Value):
        return builder.add_identity(operation, signal)
    gain = builder.tensor(weight)
    builder.add_node(
        operation,
        torch.mul,
        builder.resolve(signal),
        builder.gain(gain if shape is None else gain.reshape(shape), weight),
    )


def _weight_norm(builder: Builder, operation: Operation) -> None:
    # Weight normalisation is v * g / ||v||: the factor of v is a gain with its traced value.
    given = operation.bound()
    direction, length, dim = given["v"], given["g"], given.get("dim", 0)
    kept = [index for index in range(builder.tensor(direction).dim()) if index != dim]
    norm = torch.linalg.vector_norm(builder.tensor(direction), dim=kept, keepdim=True)
    builder.add_node(
        operation,
        torch.mul,
        builder.resolve(direction),
        builder.gain(builder.tensor(length) / norm, length),
    )


NORMALISATION_RULES: dict[str, Rule] = {
    # Scores are those of eval mode, so running statistics count even where the batch's are used.
    **dict.fromkeys(operators.BATCH_NORMS | operators.TRAINING_BATCH_NORMS, _batch_norm),
    **dict.fromkeys(operators.LAYER_NORMS, _layer_norm),
    **dict.fromkeys(operators.GROUP_NORMS, _group_norm),
    **dict.fromkeys(operators.WEIGHT_NORMS, _weight_norm),
}
