"""Gates: where two signals meet in a product, which one the flow goes through.

The skeleton is linear, so one of two multiplied signals must be a detached constant. What gates is
the constant, what is gated carries the flow; and in attention, the flow goes through the values.
Seen from the product alone, the gate is

1. what has come through a function that is bounded (sigmoid, softmax, a clamp from zero up; failing
   that, tanh or erf): squeeze-excite, GLU, attention, and also x * sigmoid(x), which is SiLU, the
   identity, or hard-swish and GELU by hand;
2. else what is smaller and spread out over the other: a gain for each channel, or each position;
3. else what has been made from the other: x * f(x), as in large-kernel attention;
4. else what has come through any nonlinearity, since it was a part of something larger: SwiGLU;
5. else what has been made from something that the other is a mere part of: gMLP;
6. else, by custom, the right one.

Of two signals in a matrix product the one that averages is what has come through a bounded function
or, failing that, a nonlinearity; else what has fewer such products behind it; else, by custom, the
left one: in linear attention, q (k^T v), first k and then q.

A gate's constant is one, whatever its value would be: it is a positive number that depends on
weights, and scores that followed it would depend on what the flow has nothing to do with. In a
contraction (attention) the constant is plain averaging over what is summed over; pairs that are
masked out, so that softmax gives them nothing, take no part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synflow_pl.flow.builder import UNIT, Builder
from synflow_pl.flow.meetings import Attention, Average, Gate, Product
from synflow_pl.flow.normalisation import NORMALISATIONS
from synflow_pl.graph.trace import Operation, Value

__all__ = ["attention", "contract", "gate", "gated", "set_level"]

SHARES, BOUNDED, ACTIVATED = 4, 2, 1
_LEVELS = {
    **dict.fromkeys(("_softmax", "_safe_softmax"), SHARES),
    **dict.fromkeys(("sigmoid", "hardsigmoid"), UNIT),
    **dict.fromkeys(("tanh", "erf", "sign", "softsign", "sin", "cos"), BOUNDED),
    **dict.fromkeys(
        "relu leaky_relu _prelu_kernel elu celu gelu silu mish hardswish softplus exp reciprocal log_sigmoid_forward".split(),
        ACTIVATED,
    ),
}
# After these a signal is a plain one again.
_PRODUCTS = frozenset("mm addmm bmm baddbmm mv addmv".split())
_PLAIN = _PRODUCTS | NORMALISATIONS.keys() | {"convolution"}
# What takes a part of a signal, and what looks at it in another shape.
_PARTS = frozenset("split split_with_sizes unbind slice select narrow".split())
_SHAPES = frozenset("view _unsafe_view permute transpose squeeze unsqueeze expand".split())


def set_level(builder: Builder, operation: Operation) -> None:
    """Note how much the operation's output looks like a gate. Moved about, scaled or shifted by
    constants, it still does.
    """
    name = operation.name
    read = [value.number for value in operation.reads if builder.carries(value)]
    if name in ("hardtanh", "clamp"):
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
        if name in _PARTS and level == ACTIVATED:
            level = 0
    mixed = max(builder.mixed.get(number, 0) for number in read) + (
        name in _PRODUCTS and len(read) > 1
    )
    for output in operation.outputs:
        if output is not None:
            builder.level[output.number], builder.mixed[output.number] = level, mixed


def gated(
    builder: Builder, operation: Operation, signal: Value, by: Value, shuts: bool = True
) -> None:
    """The operation's output is a signal that another one gates: the flow of the signal, as it is.
    ``shuts`` says whether a gate of zero lets nothing pass.
    """
    builder.gated = True
    if builder.open_gates:
        builder.step(
            operation,
            Gate(signal.number, by.number, shuts),
            builder.resolve(signal),
            builder.resolve(by),
        )
    else:
        builder.same(operation, signal)


def gate(builder: Builder, operation: Operation, left: Value, right: Value) -> None:
    """A product of two signals, entry by entry: one gates, the other is gated."""

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
    """Whether the flow of ``value`` comes through ``other`` or, with ``whole``, through what the
    other is a part of.
    """
    makers = {number: step for step in builder.steps for number in step.outputs}
    sought = builder.resolve(other).number
    while sought in makers and makers[sought].name in (_PARTS | _SHAPES if whole else _SHAPES):
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
    """A matrix product of two signals: one averages over the other."""
    builder.gated = True
    levels = [builder.level.get(value.number, 0) for value in (left, right)]
    behind = [builder.mixed.get(value.number, 0) for value in (left, right)]
    averaging = right if (levels[1], -behind[1]) > (levels[0], -behind[0]) else left
    summed = -1 if averaging is left else -2
    recorded = builder.tensor(averaging)
    support = torch.ones_like(recorded, dtype=torch.bool)
    if max(levels) == SHARES:
        # NaN is no reason to take a pair out.
        support = ~(recorded <= torch.finfo(recorded.dtype).tiny)
    mean = builder.constant(_average(support, recorded.dtype, summed))
    if builder.open_gates:
        if _modulated(builder, left) or _modulated(builder, right):
            return builder.step(
                operation,
                Product(left.number, right.number),
                builder.resolve(left),
                builder.resolve(right),
            )
        signal, by = (right, left) if averaging is left else (left, right)
        average = Average(signal.number, by.number, averaging is left, max(levels) == SHARES)
        return builder.step(operation, average, mean, builder.resolve(signal), builder.resolve(by))
    args = (mean, builder.resolve(right)) if averaging is left else (builder.resolve(left), mean)
    builder.step(operation, torch.matmul, *args)


def _modulated(builder: Builder, value: Value) -> bool:
    """Return whether a value is a matrix of prunable weights multiplied by a signal."""
    makers = {number: step for step in builder.steps for number in step.outputs}
    number = builder.resolve(value).number
    while number in makers:
        step = makers[number]
        if any(operand in builder.weights for operand in step.operands):
            return step.name in ("mul", "div")
        flowing = [operand for operand in step.operands if operand in builder.flow]
        if step.name not in _SHAPES | _PARTS | {"t", "mul", "div"} or not flowing:
            return False
        number = flowing[0]
    return False


def attention(builder: Builder, operation: Operation) -> None:
    """Fused attention of queries (N, heads, L, E), keys (N, heads, S, E) and values (N, heads, S,
    E'): values, averaged over S.
    """
    given = operation.bound()
    query, key, value = (given[name] for name in ("query", "key", "value"))
    if not builder.carries(value):
        return builder.stand_in(operation)
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
        return builder.step(operation, meeting, mean, builder.resolve(value), *asking)
    builder.step(operation, _averaged, mean, builder.resolve(value), heads)


def _averaged(mean: Tensor, value: Tensor, heads: int) -> Tensor:
    # Grouped queries share a head of values.
    return mean @ (value if heads == 1 else value.repeat_interleave(heads, -3))


def _average(support: Tensor, dtype: torch.dtype, dim: int) -> Tensor:
    mean = support.to(
        torch.promote_types(dtype.to_real(), torch.float32)
    )  # in half precision three thirds are not one
    return mean / mean.sum(dim, keepdim=True).clamp_min(1)
