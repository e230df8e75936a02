"""Gates: which of two signals that are multiplied carries the flow.

The linear network needs one of two multiplied signals to be a detached constant. The signal that
gates becomes the constant, and the signal that is gated carries the flow; in attention, the values
do. The gate of a product is

1. the signal that has passed a bounded function: sigmoid, softmax, a clamp from zero up, or,
   failing these, tanh or erf (squeeze-excite, GLU, attention, and x * sigmoid(x), which is SiLU and
   so the identity, as are hard-swish and GELU written by hand);
2. else the smaller signal, which is broadcast over the other: a gain for each channel or position;
3. else the signal that was computed from the other: x * f(x), as in large-kernel attention;
4. else the signal that has passed any nonlinearity, since it was a part of a larger tensor: SwiGLU;
5. else the signal that was computed from a tensor of which the other is a part: gMLP;
6. else, by convention, the right one.

In a matrix product of two signals, the one that averages over the other is the signal that has
passed a bounded function or, failing that, a nonlinearity; else the one with fewer such products
before it; else, by convention, the left one. (In linear attention, q (k^T v), these are k and then
q.)

The constant of a gate is one, whatever its value: the value is a positive number that depends on
weights, and scores would depend on quantities that carry no flow. In a matrix product (attention)
the constant is the mean over the summed dimension; pairs that are masked out, so that their softmax
is zero, are not part of the mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synflow_pl.flow.builder import UNIT, Builder
from synflow_pl.flow.meetings import Attention, Average, Gate, Product
from synflow_pl.graph import operators
from synflow_pl.graph.trace import Operation, Value

__all__ = ["attention", "contract", "gate", "gated", "set_level"]

# How much a value looks like a gate: SHARES for shares that sum to one, UNIT for other bounded
# non-negative values, BOUNDED for other bounded values, ACTIVATED behind any other nonlinearity.
SHARES, BOUNDED, ACTIVATED = 4, 2, 1
_LEVELS = {
    **dict.fromkeys(operators.SOFTMAXES, SHARES),
    **dict.fromkeys(operators.BOUNDED_POSITIVE, UNIT),
    **dict.fromkeys(operators.BOUNDED, BOUNDED),
    # A softmax written by hand divides exponentials by their sum.
    **dict.fromkeys(
        operators.RECTIFIERS | operators.ACTIVATIONS | {"exp", "reciprocal"}, ACTIVATED
    ),
}
# The outputs of these operations are no gates, whatever they read.
_PLAIN = operators.MATRIX_PRODUCTS | operators.NORMALISATIONS | {"convolution"}


def set_level(builder: Builder, operation: Operation) -> None:
    """Set how much the output of an operation looks like a gate.

    Moving entries, scaling and shifting by constants leave the level as it is.
    """
    name = operation.name
    read = [value.number for value in operation.reads if builder.carries(value)]
    if name in operators.CLAMPS:
        given = (
            {"min_val": -1, "max_val": 1} | operation.bound()
            if name == "hardtanh"
            else operation.bound()
        )
        low, high = (given.get(end, given.get(f"{end}_val")) for end in ("min", "max"))
        level = (
            ACTIVATED
            if low is None or high is None
            else UNIT
            if isinstance(low, (int, float)) and low >= 0
            else BOUNDED
        )
    elif name in _PLAIN:
        level = 0
    else:
        signals = [builder.level.get(number, 0) for number in read]
        level = max(_LEVELS.get(name, 0), min(signals))
        if name == "mul" and len(signals) == 2:
            level = max(level, ACTIVATED if max(signals) >= BOUNDED else 0)
        if name in operators.PARTS and level == ACTIVATED:
            level = 0
    num_products = max(builder.num_products.get(number, 0) for number in read) + (
        name in operators.MATRIX_PRODUCTS and len(read) > 1
    )
    for output in operation.results:
        builder.level[output.number], builder.num_products[output.number] = level, num_products


def gated(
    builder: Builder, operation: Operation, signal: Value, by: Value, shuts: bool = True
) -> None:
    """Let the output of an operation carry the flow of a signal that another signal gates.

    Args:
        builder: Builder of the linear network.
        operation: The product.
        signal: Signal that carries the flow.
        by: Signal that gates it.
        shuts: Whether the output is zero where the gate is zero.
    """
    builder.gated = True
    if builder.open_gates:
        builder.add_node(
            operation,
            Gate(signal.number, by.number, shuts),
            builder.resolve(signal),
            builder.resolve(by),
        )
    else:
        builder.add_identity(operation, signal)


def gate(builder: Builder, operation: Operation, left: Value, right: Value) -> None:
    """Translate an elementwise product of two signals: one of them gates the other."""

    def level(value: Value, other: Value) -> int:
        return builder.level.get(value.number, 0)

    def bounded(value: Value, other: Value) -> int:
        return level(value, other) if level(value, other) >= BOUNDED else 0

    def small(value: Value, other: Value) -> int:
        return -builder.tensor(value).numel()

    def made_from(value: Value, other: Value) -> bool:
        return _made_from(builder, value, other, whole=False)

    def made_from_whole(value: Value, other: Value) -> bool:
        return _made_from(builder, value, other, whole=True)

    for question in (bounded, small, made_from, level, made_from_whole):
        mine, others = question(left, right), question(right, left)
        if mine != others:
            return gated(builder, operation, *((right, left) if mine > others else (left, right)))
    gated(builder, operation, left, right)


def _made_from(builder: Builder, value: Value, other: Value, whole: bool) -> bool:
    """Return whether a value was computed from another one.

    Args:
        builder: Builder of the linear network.
        value: The first value.
        other: The second value.
        whole: Whether to look for the tensor of which ``other`` is a part.
    """
    makers = {number: node for node in builder.nodes for number in node.outputs}
    sought = builder.resolve(other).number
    while sought in makers and makers[sought].name in (
        operators.PARTS | operators.SHAPES if whole else operators.SHAPES
    ):
        sought = makers[sought].operands[0]
    ahead, seen = [builder.resolve(value).number], set[int]()
    while ahead:
        number = ahead.pop()
        if number == sought:
            return True
        if number in makers and number not in seen:
            seen.add(number)
            ahead += makers[number].operands
    return False


def contract(builder: Builder, operation: Operation, left: Value, right: Value) -> None:
    """Translate a matrix product of two signals: one of them averages over the other."""
    builder.gated = True
    levels = [builder.level.get(value.number, 0) for value in (left, right)]
    products = [builder.num_products.get(value.number, 0) for value in (left, right)]
    averaging = right if (levels[1], -products[1]) > (levels[0], -products[0]) else left
    summed = -1 if averaging is left else -2
    recorded = builder.tensor(averaging)
    support = torch.ones_like(recorded, dtype=torch.bool)
    if max(levels) == SHARES:
        # A pair with NaN is not masked out.
        support = ~(recorded <= torch.finfo(recorded.dtype).tiny)
    mean = builder.constant(_average(support, recorded.dtype, summed))
    if builder.open_gates:
        if _modulated(builder, left) or _modulated(builder, right):
            return builder.add_node(
                operation,
                Product(left.number, right.number),
                builder.resolve(left),
                builder.resolve(right),
            )
        signal, by = (right, left) if averaging is left else (left, right)
        average = Average(signal.number, by.number, averaging is left, max(levels) == SHARES)
        return builder.add_node(
            operation, average, mean, builder.resolve(signal), builder.resolve(by)
        )
    args = (mean, builder.resolve(right)) if averaging is left else (builder.resolve(left), mean)
    builder.add_node(operation, torch.matmul, *args)


def _modulated(builder: Builder, value: Value) -> bool:
    """Return whether a value is a matrix of prunable weights multiplied by a signal."""
    makers = {number: node for node in builder.nodes for number in node.outputs}
    number = builder.resolve(value).number
    while number in makers:
        node = makers[number]
        if any(operand in builder.weights for operand in node.operands):
            return node.name in ("mul", "div")
        flowing = [operand for operand in node.operands if operand in builder.flow]
        if node.name not in operators.SHAPES | operators.PARTS | {"mul", "div"} or not flowing:
            return False
        number = flowing[0]
    return False


def attention(builder: Builder, operation: Operation) -> None:
    """Translate fused attention: the mean of the values over the positions S.

    Queries have the shape (N, heads, L, E), keys (N, heads, S, E) and values (N, heads, S, E').
    """
    given = operation.bound()
    query, key, value = (given[name] for name in ("query", "key", "value"))
    if not builder.carries(value):
        return builder.add_fallback(operation)
    builder.gated = True
    targets, sources = builder.tensor(query).shape[-2], builder.tensor(key).shape[-2]
    support = torch.ones(targets, sources, dtype=torch.bool, device=builder.tensor(value).device)
    if given.get("is_causal"):
        support = support.tril()
    mask: Any = given.get("attn_mask") or given.get("attn_bias")
    if mask is not None:
        added = builder.tensor(mask)
        added = torch.where(added, 0.0, -torch.inf) if added.dtype == torch.bool else added
        support = support & ~(
            (added - added.amax(-1, keepdim=True)).exp() <= torch.finfo(added.dtype).tiny
        )
    heads = builder.tensor(query).shape[-3] // builder.tensor(value).shape[-3]
    mean = builder.constant(_average(support, builder.tensor(value).dtype, -1))
    if builder.open_gates:
        asking = [
            builder.resolve(signal) if builder.carries(signal) else None for signal in (query, key)
        ]
        keys = builder.tensor(query).shape[-3] // builder.tensor(key).shape[-3]
        meeting = Attention(value.number, value.number, _averaged, heads, keys)
        return builder.add_node(operation, meeting, mean, builder.resolve(value), *asking)
    builder.add_node(operation, _averaged, mean, builder.resolve(value), heads)


def _averaged(mean: Tensor, value: Tensor, heads: int) -> Tensor:
    # In grouped-query attention several heads of queries share a head of values.
    return mean @ (value if heads == 1 else value.repeat_interleave(heads, -3))


def _average(support: Tensor, dtype: torch.dtype, dim: int) -> Tensor:
    mean = support.to(
        torch.promote_types(dtype.to_real(), torch.float32)
    )  # in half precision, three thirds do not sum to one
    return mean / mean.sum(dim, keepdim=True).clamp_min(1)
