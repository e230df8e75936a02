"""Normalisation: in the skeleton it is its |gain|, for BatchNorm over its running deviation; no mean is taken off.

Divided by what the flow itself is, the skeleton would not be linear; and before LayerNorm, whose
output does not depend on the scale of its input, every score would cancel to zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synflow_pl.flow.builder import Builder, Rule
from synflow_pl.graph.trace import Operation, Value

__all__ = ["NORMALISATIONS"]


def _batch_norm(builder: Builder, operation: Operation) -> None:
    given = operation.bound()
    variance, weight = given.get("running_var"), given.get("weight")
    channels = (-1,) + (1,) * (builder.tensor(given["input"]).dim() - 2)
    if builder.in_weights:
        # Standardised weights: over their own deviation, as recorded.
        inverse = operation.outputs[2]
        assert inverse is not None
        gain = builder.tensor(inverse)
    elif isinstance(variance, Value):
        gain = (builder.tensor(variance) + given["eps"]).rsqrt()
    else:
        # No running statistics: normalised by the batch, like an instance norm.
        return _gain(builder, operation, given["input"], weight, channels)
    gain = gain if weight is None else gain * builder.tensor(weight)
    if builder.in_weights and builder.open_gates:
        dims = tuple(dim for dim in range(builder.tensor(given["input"]).dim()) if dim != 1)
        return builder.step(operation, _with_mean, builder.resolve(given["input"]), dims)
    builder.step(
        operation,
        torch.mul,
        builder.resolve(given["input"]),
        builder.gain(gain.reshape(channels), weight),
    )


def _with_mean(weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Connect each entry of a standardised weight to itself and to all entries that its mean is
    taken over.
    """
    return weight + weight.mean(dims, keepdim=True)


def _layer_norm(builder: Builder, operation: Operation) -> None:
    given = operation.bound()
    if builder.in_weights and builder.open_gates:
        dims = tuple(range(-len(given["normalized_shape"]), 0))
        return builder.step(operation, _with_mean, builder.resolve(given["input"]), dims)
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
        return builder.same(operation, signal)
    gain = builder.tensor(weight)
    builder.step(
        operation,
        torch.mul,
        builder.resolve(signal),
        builder.gain(gain if shape is None else gain.reshape(shape), weight),
    )


def _weight_norm(builder: Builder, operation: Operation) -> None:
    # v g / ||v||: the factor on v is a gain, as recorded.
    direction, length, dim = operation.args[:3]
    kept = [index for index in range(builder.tensor(direction).dim()) if index != dim]
    norm = torch.linalg.vector_norm(builder.tensor(direction), dim=kept, keepdim=True)
    builder.step(
        operation,
        torch.mul,
        builder.resolve(direction),
        builder.gain(builder.tensor(length) / norm, length),
    )


NORMALISATIONS: dict[str, Rule] = {
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "miopen_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_weight_norm_interface": _weight_norm,
}
