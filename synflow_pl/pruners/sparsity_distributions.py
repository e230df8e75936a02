"""Quotas: how many weights each layer keeps, decided by its shape alone.

Each rule gives every layer a wish, the fraction of its weights that it would keep but for one
common factor:

- ``uniform``: the same in each layer.
- ``er``, Erdős-Rényi (Mocanu et al. 2018): (inputs + units) / (inputs * units).
- ``erk``, its extension to kernels (Evci et al. 2020): (inputs + units + kernel height + width) /
  (their product).
- ``smart_ratio`` (Su et al. 2020 and their code): in layer l of L of a residual network (L - l +
  1)^2 + (L - l + 1), and 0.3 of the last layer, fixed; in any other network ((L - l + 1)^2 + (L - l
  + 1)) / l^2, and 0.3 of each linear layer, fixed. Networks of linear layers only, which the paper
  does not treat, fix the last.
- ``igq``, ideal gas quotas (Vysogorets & Kempe 2023): 1 / (1 + F * n) in a layer of n weights, one
  F for all: the lengths of coupled cylinders under one force.

The factor (or F) is where the quotas add up to what is to be kept. A layer that is full passes its
excess on to the others in proportion (the code of Su et al. passes it to the layers that follow).
Quotas are made whole by largest remainders, so that their sum is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

__all__ = ["Rule", "weights_per_layer"]

Rule = Literal["uniform", "er", "erk", "smart_ratio", "igq"]
LAST_LAYER = 0.3
"""Fraction that smart ratio keeps of the last layer of a residual network and of each linear layer
of any other.
"""


def weights_per_layer(
    rule: Rule, shapes: Sequence[Sequence[int]], kept: int, *, residual: bool = True
) -> list[int]:
    """Weights that each layer keeps.

    Args:
        rule: one of those above.
        shapes: (units, inputs, *kernel) of each layer's weight, in the order of the network.
        kept: weights kept in all, in [0, sum of the sizes].
        residual: whether smart ratio takes its rule for residual networks, or that for all others.

    Returns:
        One number per layer, at most its size; their sum is ``kept``.

    Raises:
        ValueError: for an unknown rule, or if what smart ratio fixes alone would keep more than
            ``kept``.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"quota: {rule!r} is not one of {', '.join(get_args(Rule))}")
    sizes = [math.prod(shape) for shape in shapes]
    if rule == "igq":
        # Past this force, every layer would keep less than half a weight in all.
        return _whole(
            _solve(lambda force: [n / (1 + force * n) for n in sizes], kept, 4.0 * len(sizes)),
            sizes,
            kept,
        )
    if rule == "smart_ratio":
        return _whole(_smart_shares(shapes, sizes, kept, residual), sizes, kept)
    return _whole(_fill([_wish(rule, shape) for shape in shapes], sizes, kept), sizes, kept)


def _smart_shares(
    shapes: Sequence[Sequence[int]], sizes: Sequence[int], kept: int, residual: bool
) -> list[float]:
    """Weights that each layer keeps by smart ratio, in fractions; their sum is ``kept``."""
    count = len(sizes)
    fixed = [index for index, shape in enumerate(shapes) if len(shape) == 2]
    if residual or len(fixed) == count:
        fixed = [count - 1]
    others = [index for index in range(count) if index not in fixed]
    if not others:
        return [float(kept)]
    share = LAST_LAYER * sum(sizes[index] for index in fixed)
    if share > kept:
        which = "the last layer" if fixed == [count - 1] else f"each of {len(fixed)} linear layers"
        raise ValueError(
            f"smart_ratio keeps {LAST_LAYER} of {which}, {share:g} weights, more than the {kept} that are to be left; use erk or igq"
        )
    # As the rule counts: l from 1, and L - l + 1 layers from layer l to the last.
    order = {index: (count - index, 1 if residual else index + 1) for index in others}
    ratios = [(left * left + left) / divisor**2 for left, divisor in order.values()]
    room = [sizes[index] for index in others]
    share = max(share, kept - sum(room))  # when all others are full
    filled = _fill([1.0] * len(fixed), [sizes[index] for index in fixed], share) + _fill(
        ratios, room, kept - share
    )
    shares = dict(zip([*fixed, *others], filled, strict=True))
    return [shares[index] for index in range(count)]


def _wish(rule: str, shape: Sequence[int]) -> float:
    if rule == "uniform":
        return 1.0
    counted = shape if rule == "erk" else shape[:2]
    return sum(counted) / math.prod(counted)


def _fill(wishes: Sequence[float], sizes: Sequence[int], kept: float) -> list[float]:
    """``wish * size * factor`` for each layer, at most its size, with the one factor at which they
    add up to ``kept``.
    """
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
    return [
        wishes[index] * size * factor if index in open_layers else float(size)
        for index, size in enumerate(sizes)
    ]


def _solve(shares: Callable[[float], list[float]], kept: int, high: float) -> list[float]:
    """Shares at the force, in [0, ``high``], at which they add up to ``kept``: they fall as it
    grows.
    """
    low = 0.0
    while sum(shares(high)) > kept and high < 1e18:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shares(middle)) > kept else (low, middle)
    return shares(low)


def _whole(shares: Sequence[float], sizes: Sequence[int], kept: int) -> list[int]:
    """Largest remainders: each share rounded down, and one more where the most was lost, the first
    layer first, until all is given.
    """
    whole = [min(math.floor(share + 1e-9), size) for share, size in zip(shares, sizes, strict=True)]
    order = sorted(range(len(sizes)), key=lambda index: (whole[index] - shares[index], index))
    while (missing := kept - sum(whole)) > 0:
        for index in [index for index in order if whole[index] < sizes[index]][:missing]:
            whole[index] += 1
    for index in reversed(order):
        if (over := sum(whole) - kept) > 0:
            whole[index] -= min(over, whole[index])
    return whole
