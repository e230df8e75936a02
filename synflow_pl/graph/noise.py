"""Noise: random numbers in a forward pass, replaced by what they are on average.

A network may draw random numbers in eval mode (functional dropout that is always on, stochastic
depth, noise that is added or multiplied). Scores must not depend on the seed, so while a network is
recorded each random number is its mean. What has been made of it by more than scaling and shifting,
a comparison say, is averaged over its distribution.

Alpha dropout keeps the mean and the variance of a signal by a gain and a shift, so its mean is no
identity; it is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from synflow_pl.graph.trace import Operation, Value

__all__ = ["AFFINE", "Noise", "WithoutAlphaDropout", "average", "silenced"]

# So many levels of the distribution: a share that is given in thousandths is averaged exactly.
_LEVELS = 1000
# The mean of their output is their output for the mean, where one operand is random.
AFFINE = frozenset(
    """
    add sub rsub mul div neg view _unsafe_view reshape _reshape_alias expand clone alias detach _to_copy lift_fresh permute transpose t
    unsqueeze squeeze slice select cat stack mean sum copy
    """.split()
)


@dataclass(frozen=True)
class Noise:
    """Random numbers: where they are, how large at which level of their distribution.

    Attributes:
        at: from a level in (0, 1) to the tensor with all entries at that quantile.
    """

    at: Callable[[float], Tensor]


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
    """Alpha dropout gives back its input, as it does when it is off."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ALPHA_DROPOUTS:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


def silenced(
    target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
) -> Noise | None:
    """Overwrite the random numbers that an operation has drawn by their mean. Returns how they are
    distributed, ``None`` if none are.

    Numbers of any other distribution stay as drawn, from the seed that every recording has.
    """
    kind = _kind(target)
    if kind is None:
        return None
    drawn = result[0] if isinstance(result, (tuple, list)) else result
    arguments = target._schema.arguments
    given = {
        argument.name: argument.default_value
        for argument in arguments
        if argument.has_default_value()
    }
    given |= {**dict(zip([argument.name for argument in arguments], args, strict=False)), **kwargs}
    if not isinstance(drawn, Tensor):
        return None
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
    return Noise(lambda level: _filled(like, low + (high - low) * level))


def _normal(given: Mapping[str, Any], result: Any, drawn: Tensor) -> Noise:
    mean, deviation = given.get("mean", 0.0), given.get("std", 1.0)
    like = torch.empty_like(drawn)
    drawn.copy_(_filled(like, mean))

    def at(level: float) -> Tensor:
        quantile = math.sqrt(2) * float(
            torch.erfinv(torch.tensor(2 * level - 1, dtype=torch.float64))
        )
        return _filled(like, mean + deviation * quantile)

    return Noise(at)


def _bernoulli(given: Mapping[str, Any], result: Any, drawn: Tensor) -> Noise:
    share = given["p"] if "p" in given else given["self"]  # else each entry is its own probability
    share = share.clone() if isinstance(share, Tensor) else share
    like = torch.empty_like(drawn)
    if drawn.dtype.is_floating_point:
        drawn.copy_(_filled(like, share))
    else:
        drawn.copy_(_filled(like.float(), share) >= 0.5)
    return Noise(lambda level: (level < _filled(like.float(), share)).to(like.dtype))


def _dropout(given: Mapping[str, Any], result: Any, drawn: Tensor) -> None:
    """Fused dropout: the signal itself, and a mask of all."""
    drawn.copy_(given["input"])
    result[1].fill_(1)


def _exponential(given: Mapping[str, Any], result: Any, drawn: Tensor) -> Noise:
    rate = given.get("lambd", 1.0)
    like = torch.empty_like(drawn)
    drawn.fill_(1 / rate)
    return Noise(lambda level: _filled(like, -math.log1p(-level) / rate))


def _integers(given: Mapping[str, Any], result: Any, drawn: Tensor) -> Noise:
    low, high = given.get("low", given.get("from", 0)) or 0, given.get("high", given.get("to"))
    like = torch.empty_like(drawn)
    span = (high if high is not None else 2) - low
    drawn.fill_(low + (span - 1) // 2)
    return Noise(lambda level: _filled(like, low + int(span * level)))


def _permutation(given: Mapping[str, Any], result: Any, drawn: Tensor) -> None:
    """A shuffle leaves all where it is."""
    drawn.copy_(torch.arange(drawn.numel(), device=drawn.device))


_KINDS: dict[str, Callable[[Mapping[str, Any], Any, Tensor], Noise | None]] = {
    **dict.fromkeys(("rand", "rand_like", "uniform"), _uniform),
    **dict.fromkeys(("randn", "randn_like", "normal", "normal_functional"), _normal),
    "bernoulli": _bernoulli,
    "native_dropout": _dropout,
    "exponential": _exponential,
    **dict.fromkeys(("randint", "randint_like", "random"), _integers),
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
    """Return the mean of a value that is made of random numbers and constants.

    Args:
        number: Number of the value.
        makers: by number of their output, the operations that random numbers reach.
        noise: Random numbers of the recording.
        tensors: Tensors of the recording.
    """
    from synflow_pl.graph.trace import Value

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
        # Several sources are independent: each goes through its levels in an order of its own.
        made = {
            source: noise[source].at(
                ((level * _STRIDES[place % len(_STRIDES)]) % _LEVELS + 0.5) / _LEVELS
            )
            for place, source in enumerate(sources)
        }

        def leaf(item: Any, made: dict[int, Tensor] = made) -> Any:
            return made.get(item.number, tensors[item.number]) if isinstance(item, Value) else item

        for operation in order:
            args, kwargs = tree_map(
                leaf,
                (operation.args, operation.kwargs),
                is_leaf=lambda item: isinstance(item, Value),
            )
            result = operation.target(*args, **kwargs)
            results = result if isinstance(result, (tuple, list)) else (result,)
            made.update(
                {
                    value.number: output
                    for value, output in zip(operation.outputs, results, strict=True)
                    if value is not None
                }
            )
        total = made[number].double() if total is None else total + made[number]
    assert total is not None
    recorded = tensors[number]
    return (total / _LEVELS).to(recorded.dtype if recorded.is_floating_point() else torch.float32)


_STRIDES = (1, 387, 619, 271, 833)


def _is_affine(operation: Operation, random: set[int]) -> bool:
    read = [value.number for value in operation.reads if value.number in random]
    if operation.name == "_to_copy" or operation.name not in ("mul", "div"):
        output: Value | None = operation.outputs[0]
        return (
            operation.name in AFFINE and output is not None and "dtype" not in _narrowing(operation)
        )
    return len(read) == 1 and (
        operation.name == "mul" or (bool(operation.args) and operation.args[0].number in random)
    )


def _narrowing(operation: Operation) -> dict[str, Any]:
    kind = operation.kwargs.get("dtype")
    return {} if not isinstance(kind, torch.dtype) or kind.is_floating_point else {"dtype": kind}
