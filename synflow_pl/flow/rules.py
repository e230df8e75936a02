"""Rules: how each operation is translated into the positive linear network.

Tanaka et al. 2020 score a network by R = 1^T f(1) with every weight replaced by its magnitude. This
assumes a *linear* network: |w| for every weight, and of everything else only what passes flow on.

- A pointwise nonlinearity is the identity. (In a ReLU network with positive weights ReLU is the
  identity; ReLU6 would saturate.)
- A normalisation is its |gain|, for BatchNorm divided by its running deviation; no mean is
  subtracted.
- Additive terms (biases, shifts, position embeddings) are zero, since they would dominate the flow
  in deep layers.
- Pooling, reshaping, concatenation and addition stay as they are.
- Of two multiplied signals, one is a constant (:mod:`synflow_pl.flow.gates`).

An operation without a rule is the identity if shapes agree and the mean otherwise.
:attr:`LinearNetwork.notes` names it with the error of this replacement.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synflow_pl.flow.arithmetic import ARITHMETIC, add
from synflow_pl.flow.builder import Builder, Rule
from synflow_pl.flow.contractions import CONTRACTIONS
from synflow_pl.flow.gates import attention, set_level
from synflow_pl.flow.meetings import Gate
from synflow_pl.flow.normalisation import NORMALISATION_RULES
from synflow_pl.flow.spectra import SPECTRA
from synflow_pl.graph import operators
from synflow_pl.graph.trace import Operation, is_number

__all__ = ["apply_rule"]

aten = torch.ops.aten

# Operations that are the identity on flow.
_IDENTITY = (
    operators.ELEMENTWISE
    | operators.ALIASES
    | operators.SOFTMAXES
    | {"_log_softmax", "rsub"}  # a number minus the signal
)


def apply_rule(builder: Builder, operation: Operation) -> None:
    """Add the translation of an operation to ``builder``."""
    name = operation.name
    if name == "bernoulli" and any(
        argument.name == "p" for argument in operation.target._schema.arguments
    ):
        return  # only the shape of the argument matters
    if name in _RULES:
        _RULES[name](builder, operation)
    elif name in operators.CREATED:
        return  # a constant: only the shape of the argument matters
    elif name in _IDENTITY:
        builder.add_identity(
            operation, next(value for value in operation.reads if builder.carries(value))
        )
    elif name in operators.LINEAR:
        builder.add_operation(operation)
    elif name in operators.RESHAPES:
        # A tensor that was contiguous in the network may not be contiguous in the linear network.
        builder.add_operation(operation, torch.reshape)
    else:
        builder.add_fallback(operation)
    set_level(builder, operation)


def _pad(builder: Builder, operation: Operation) -> None:
    # The padding value is an additive term: zero, so that no flow enters at the border.
    builder.add_node(
        operation, aten.constant_pad_nd, builder.resolve(operation.args[0]), operation.args[1], 0.0
    )


def _convert(builder: Builder, operation: Operation) -> None:
    """Translate a conversion to another precision, to integers or to booleans."""
    output, signal = operation.outputs[0], operation.args[0]
    assert output is not None
    return (
        builder.add_identity(operation, signal)
        if is_number(builder.tensor(output))
        else builder.mark_input_dependent(output, [signal])
    )


def _fill_masked(builder: Builder, operation: Operation) -> None:
    signal, mask = operation.args[:2]
    if not builder.carries(signal):
        return  # only the fill value carries flow
    if mask.number in builder.input_dependent:
        return builder.add_identity(operation, signal)
    if builder.is_random(mask):
        return builder.add_node(
            operation,
            torch.mul,
            builder.resolve(signal),
            builder.constant(1 - builder.average(mask)),
        )
    builder.add_node(
        operation, torch.masked_fill, builder.resolve(signal), builder.tensor(mask), 0.0
    )


def _where(builder: Builder, operation: Operation) -> None:
    condition, left, right = operation.args[:3]
    if builder.is_random(condition):
        share = builder.average(condition)
        return builder.add_node(
            operation,
            _blend,
            builder.constant(share),
            builder.operand(left),
            builder.operand(right),
        )
    if condition.number not in builder.input_dependent:
        condition = builder.tensor(condition)
        return builder.add_node(
            operation, torch.where, condition, builder.operand(left), builder.operand(right)
        )
    # A condition that depends on the signal makes a nonlinearity, and both branches pass on flow.
    add(builder, Operation(operation.target, (left, right), {}, operation.outputs))


def _put(builder: Builder, operation: Operation) -> None:
    signal, places = operation.args[:2]
    chosen = any(
        builder.tensor(place).dtype == torch.bool and place.number in builder.input_dependent
        for place in places
        if place is not None
    )
    if chosen and builder.carries(signal):
        # y[y < 0] = 0: an index that depends on the signal makes a nonlinearity.
        return builder.add_identity(operation, signal)
    builder.add_operation(operation)


def _blend(share: Tensor, left: Any, right: Any) -> Tensor:
    return share * left + (1 - share) * right


def _copy(builder: Builder, operation: Operation) -> None:
    source = operation.args[1]
    if builder.carries(source):
        builder.add_identity(operation, source)
    elif source.number in builder.input_dependent:
        builder.start_flow(operation, [source])


def _glu(builder: Builder, operation: Operation) -> None:
    signal, dim = operation.args[0], operation.args[1] if len(operation.args) > 1 else -1
    builder.gated = True
    if builder.open_gates:
        return builder.add_node(
            operation, Gate(signal.number, signal.number, halves=dim), builder.resolve(signal)
        )
    builder.add_node(operation, _first_half, builder.resolve(signal), dim)


def _first_half(signal: Tensor, dim: int) -> Tensor:
    return signal.chunk(2, dim)[0]


def _moments(builder: Builder, operation: Operation) -> None:
    if not builder.open_gates:
        return builder.add_fallback(operation)
    given = operation.bound()
    dims = given.get("dim") or tuple(range(builder.tensor(given["self"]).dim()))
    for index in range(len(operation.outputs)):
        builder.add_node(
            operation,
            _mean,
            builder.resolve(given["self"]),
            dims,
            given.get("keepdim", False),
            output=index,
        )


def _mean(signal: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return signal.mean(dims, keepdim=keepdim)


def _bicubic(builder: Builder, operation: Operation) -> None:
    # Bicubic coefficients can be negative; bilinear ones are non-negative and nearly as wide.
    args = builder.operand(operation.args)
    builder.add_node(operation, aten.upsample_bilinear2d, *args)


def _minimum(builder: Builder, operation: Operation) -> None:
    left, right = operation.args[:2]
    if builder.carries(left) and builder.carries(right):
        return builder.add_operation(operation)
    builder.add_identity(operation, left if builder.carries(left) else right)


_RULES: dict[str, Rule] = {
    **ARITHMETIC,
    **CONTRACTIONS,
    **NORMALISATION_RULES,
    **SPECTRA,
    "constant_pad_nd": _pad,
    "masked_fill": _fill_masked,
    "where": _where,
    "copy": _copy,
    "index_put": _put,
    **dict.fromkeys(operators.CONVERSIONS, _convert),
    "minimum": _minimum,
    "glu": _glu,
    **dict.fromkeys(operators.MOMENTS, _moments),
    **dict.fromkeys(operators.BICUBIC_RESIZES, _bicubic),
    **dict.fromkeys(operators.ATTENTIONS, attention),
}
