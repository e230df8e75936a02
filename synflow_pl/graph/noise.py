"""Noise: replaces random numbers in a forward pass by their mean.

A network may use random numbers in eval mode: functional dropout that is always on, stochastic
depth, noise that is added or multiplied. Scores must not depend on the seed, so each random number
becomes its mean while a network is traced. A value that is a nonlinear function of random numbers
(a comparison, say) is averaged over their distribution.

Alpha dropout keeps the mean and the variance of a signal by a gain and a shift, so its mean is not
the identity; it is skipped instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from synflow_pl.graph import operators
from synflow_pl.graph.operation import Operation, Value, bind

__all__ = ["Noise", "WithoutAlphaDropout", "average", "replace_by_mean"]

# Number of quantiles of each distribution. Probabilities in thousandths are averaged exactly.
_LEVELS = 1000
# Operations that map the mean of one random operand to the mean of the output.
_AFFINE = (
    operators.SUMS
    | operators.MOVES
    | operators.JOINS
    | {"mul", "div", "neg", "mean", "sum", "copy"}
)

Noise = Callable[[float], Tensor]
"""The distribution of a tensor of random numbers: the entries' quantiles at a level in (0, 1)."""

_ALPHA_DROPOUTS = frozenset(
    getattr(room, name)
    for room, names in (
        (functional, ("alpha_dropout", "feature_alpha_dropout")),
        (
            torch,
            ("alpha_dropout", "alpha_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_"),
        ),
    )
    for name in names
)


class WithoutAlphaDropout(TorchFunctionMode):
    """Makes alpha dropout return its input, as in eval mode, while it is active."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ALPHA_DROPOUTS:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


def replace_by_mean(
    target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
) -> Noise | None:
    """Overwrite the random numbers that an operation returned by their mean.

    Random numbers of a distribution without an entry in ``_KINDS`` stay as they are; they come from
    the fixed seed of the tracer.

    Args:
        target: The operation.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        result: Result of the call.

    Returns:
        The distribution, or ``None`` if the operation returns no random numbers of a known one.
    """
    kind = _kind(target)
    if kind is None:
        return None
    drawn = result[0] if isinstance(result, (tuple, list)) else result
    given = {
        argument.name: argument.default_value
        for argument in target._schema.arguments
        if argument.has_default_value()
    } | bind(target, args, kwargs)
    return kind(given, result, drawn)


def _filled(tensor: Tensor, value: Any) -> Tensor:
    return (
        torch.zeros_like(tensor) + value
        if isinstance(value, Tensor)
        else torch.full_like(tensor, value)
    )


def _uniform(given: Mapping[str, Any], result: Any, drawn: Tensor) -> Noise:
    low, high = given.get("from", 0.0), given.get("to", 1.0)
    drawn.fill_((low + high) / 2)
    like = torch.empty_like(drawn)
    return lambda level: _filled(like, low + (high - low) * level)


def _normal(given: Mapping[str, Any], result: Any, drawn: Tensor) -> Noise:
    mean, deviation = given.get("mean", 0.0), given.get("std", 1.0)
    like = torch.empty_like(drawn)
    drawn.copy_(_filled(like, mean))

    def at(level: float) -> Tensor:
        quantile = math.sqrt(2) * float(
            torch.erfinv(torch.tensor(2 * level - 1, dtype=torch.float64))
        )
        return _filled(like, mean + deviation * quantile)

    return at


def _bernoulli(given: Mapping[str, Any], result: Any, drawn: Tensor) -> Noise:
    # without p, each entry is its own probability
    share = given["p"] if "p" in given else given["self"]
    share = share.clone() if isinstance(share, Tensor) else share
    like = torch.empty_like(drawn)
    if drawn.dtype.is_floating_point:
        drawn.copy_(_filled(like, share))
    else:
        drawn.copy_(_filled(like.float(), share) >= 0.5)
    return lambda level: (level < _filled(like.float(), share)).to(like.dtype)


def _dropout(given: Mapping[str, Any], result: Any, drawn: Tensor) -> None:
    """Replace fused dropout by its input and a mask of ones."""
    drawn.copy_(given["input"])
    result[1].fill_(1)


def _exponential(given: Mapping[str, Any], result: Any, drawn: Tensor) -> Noise:
    rate = given.get("lambd", 1.0)
    like = torch.empty_like(drawn)
    drawn.fill_(1 / rate)
    return lambda level: _filled(like, -math.log1p(-level) / rate)


def _integers(given: Mapping[str, Any], result: Any, drawn: Tensor) -> Noise:
    low, high = given.get("low", given.get("from", 0)) or 0, given.get("high", given.get("to"))
    like = torch.empty_like(drawn)
    span = (high if high is not None else 2) - low
    drawn.fill_(low + (span - 1) // 2)
    return lambda level: _filled(like, low + int(span * level))


def _permutation(given: Mapping[str, Any], result: Any, drawn: Tensor) -> None:
    """Replace a random permutation by the identity."""
    drawn.copy_(torch.arange(drawn.numel(), device=drawn.device))


_KINDS: dict[str, Callable[[Mapping[str, Any], Any, Tensor], Noise | None]] = {
    **dict.fromkeys(operators.UNIFORM, _uniform),
    **dict.fromkeys(operators.NORMAL, _normal),
    "bernoulli": _bernoulli,
    "native_dropout": _dropout,
    "exponential": _exponential,
    **dict.fromkeys(operators.INTEGERS, _integers),
    "randperm": _permutation,
}


@cache
def _kind(target: Any) -> Callable[[Mapping[str, Any], Any, Tensor], Noise | None] | None:
    space, _, name = target._schema.name.partition("::")
    return _KINDS.get(name.rstrip("_")) if space == "aten" else None


def average(
    number: int,
    makers: Mapping[int, Operation],
    noise: Mapping[int, Noise],
    tensors: Sequence[Tensor],
) -> Tensor:
    """Return the mean of a value that is computed from random numbers and constants.

    Args:
        number: Number of the value.
        makers: Operations that read random numbers, by the number of their output.
        noise: Distributions of the random numbers in the graph, by number.
        tensors: Tensors of the graph.
    """
    sources: list[int] = []
    order: list[Operation] = []
    seen: set[int] = set()

    def visit(number: int) -> None:
        if number in seen:
            return
        seen.add(number)
        if number in noise:
            sources.append(number)
        elif number in makers:
            for value in makers[number].reads:
                visit(value.number)
            order.append(makers[number])

    visit(number)
    if all(_is_affine(operation, seen & (makers.keys() | noise.keys())) for operation in order):
        recorded = tensors[number]
        return recorded if recorded.is_floating_point() else recorded.float()
    total: Tensor | None = None
    for level in range(_LEVELS):
        # Each source visits its quantiles in a different order, since sources are independent.
        made = {
            source: noise[source](
                ((level * _STRIDES[place % len(_STRIDES)]) % _LEVELS + 0.5) / _LEVELS
            )
            for place, source in enumerate(sources)
        }

        def tensor(value: Value, made: dict[int, Tensor] = made) -> Tensor:
            return made.get(value.number, tensors[value.number])

        for operation in order:
            made.update(operation.run(tensor))
        total = made[number].double() if total is None else total + made[number]
    assert total is not None
    recorded = tensors[number]
    return (total / _LEVELS).to(recorded.dtype if recorded.is_floating_point() else torch.float32)


_STRIDES = (1, 387, 619, 271, 833)


def _is_affine(operation: Operation, random: set[int]) -> bool:
    read = [value.number for value in operation.reads if value.number in random]
    if operation.name not in ("mul", "div"):
        dtype = operation.kwargs.get("dtype")
        narrows = isinstance(dtype, torch.dtype) and not dtype.is_floating_point
        return operation.name in _AFFINE and operation.outputs[0] is not None and not narrows
    return len(read) == 1 and (
        operation.name == "mul" or (bool(operation.args) and operation.args[0].number in random)
    )
