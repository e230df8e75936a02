"""Quotas: how many weights each layer keeps, decided by its shape alone.

Each rule gives every layer a wish, the fraction of its weights that it would keep but for one common factor:

- ``uniform``: the same in each layer.
- ``er``, Erdős-Rényi (Mocanu et al. 2018): (inputs + units) / (inputs * units).
- ``erk``, its extension to kernels (Evci et al. 2020): (inputs + units + kernel height + width) / (their product).
- ``smart_ratio`` (Su et al. 2020): (L - l + 1)^2 + (L - l + 1) in layer l of L, and 0.3 of the last, fixed.
- ``igq``, ideal gas quotas (Vysogorets & Kempe 2023): 1 / (1 + F * n) in a layer of n weights, one F for all: the lengths of coupled
  cylinders under one force.

The factor (or F) is where the quotas add up to what is to be kept. A layer that is full passes its excess on to the others, in
proportion to their wishes. Quotas are made whole by largest remainders, so that their sum is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

__all__ = ["Rule", "quotas"]

Rule = Literal["uniform", "er", "erk", "smart_ratio", "igq"]
LAST_LAYER = 0.3
"""What smart ratio keeps of the last layer."""


def quotas(rule: Rule, shapes: Sequence[Sequence[int]], kept: int) -> list[int]:
    """Weights that each layer keeps.

    Args:
        rule: one of those above.
        shapes: (units, inputs, *kernel) of each layer's weight, in the order of the network.
        kept: weights kept in all, in [0, sum of the sizes].

    Returns:
        One number per layer, at most its size; their sum is ``kept``.

    Raises:
        ValueError: for an unknown rule, or if smart ratio's last layer alone would keep more than ``kept``.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"quota: {rule!r} is not one of {', '.join(get_args(Rule))}")
    sizes = [math.prod(shape) for shape in shapes]
    if rule == "igq":
        # Past this force, every layer would keep less than half a weight in all.
        return _whole(_solve(lambda force: [n / (1 + force * n) for n in sizes], kept, 4.0 * len(sizes)), sizes, kept)
    if rule == "smart_ratio":
        last = min(LAST_LAYER * sizes[-1], sizes[-1])
        if len(sizes) > 1 and last > kept:
            raise ValueError(
                f"smart_ratio keeps 0.3 of the last layer, {last:g} weights, more than the {kept} that are to be left; use erk or igq"
            )
        wishes = [float(x * x + x) for x in range(len(sizes), 1, -1)]
        others = sizes[:-1]
        last = max(last, kept - sum(others))  # when all others are full
        shares = [*_fill(wishes, others, kept - last), last] if others else [float(kept)]
        return _whole(shares, sizes, kept)
    return _whole(_fill([_wish(rule, shape) for shape in shapes], sizes, kept), sizes, kept)


def _wish(rule: str, shape: Sequence[int]) -> float:
    if rule == "uniform":
        return 1.0
    counted = shape if rule == "erk" else shape[:2]
    return sum(counted) / math.prod(counted)


def _fill(wishes: Sequence[float], sizes: Sequence[int], kept: float) -> list[float]:
    """``wish * size * factor`` for each layer, at most its size, with the one factor at which they add up to ``kept``."""
    open_layers = set(range(len(sizes)))
    while open_layers:
        left = kept - sum(size for index, size in enumerate(sizes) if index not in open_layers)
        factor = left / sum(wishes[index] * sizes[index] for index in open_layers)
        full = {index for index in open_layers if wishes[index] * factor >= 1}
        if not full:
            break
        open_layers -= full
    else:
        factor = 0.0
    return [wishes[index] * size * factor if index in open_layers else float(size) for index, size in enumerate(sizes)]


def _solve(shares: Callable[[float], list[float]], kept: int, high: float) -> list[float]:
    """Shares at the force, in [0, ``high``], at which they add up to ``kept``: they fall as it grows."""
    low = 0.0
    while sum(shares(high)) > kept and high < 1e18:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shares(middle)) > kept else (low, middle)
    return shares(low)


def _whole(shares: Sequence[float], sizes: Sequence[int], kept: int) -> list[int]:
    """Largest remainders: each share rounded down, and one more where the most was lost, the first layer first, until all is given."""
    whole = [min(math.floor(share + 1e-9), size) for share, size in zip(shares, sizes, strict=True)]
    order = sorted(range(len(sizes)), key=lambda index: (whole[index] - shares[index], index))
    while (missing := kept - sum(whole)) > 0:
        for index in [index for index in order if whole[index] < sizes[index]][:missing]:
            whole[index] += 1
    for index in reversed(order):
        if (over := sum(whole) - kept) > 0:
            whole[index] -= min(over, whole[index])
    return whole
