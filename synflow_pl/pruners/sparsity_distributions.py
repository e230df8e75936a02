"""Sparsity distributions: how many weights each layer keeps, determined by its shape alone.

Each rule gives every layer a density up to one common factor:

- ``uniform``: the same density for each layer.
- ``uniform_plus`` (Gale et al. 2019, "The state of sparsity in deep neural networks"): the same
  density for each layer, but 1 for the first layer if it is a convolution, and at least 0.2 for the
  last layer. Gale et al. fix the first convolution of ResNet-50; the first layer of a network of
  linear layers, which often has most of its weights, has the common density.
- ``er``, Erdős-Rényi (Mocanu et al. 2018): (inputs + units) / (inputs * units).
- ``erk``, its extension to kernels (Evci et al. 2020): (inputs + units + kernel height + width) /
  (their product).
- ``smart_ratio`` (Su et al. 2020 and their code): (L - l + 1)^2 + (L - l + 1) for layer l of L of a
  residual network, and 0.3 for the last layer, fixed; ((L - l + 1)^2 + (L - l + 1)) / l^2 for layer
  l of any other network, and 0.3 for each linear layer, fixed. In a network of linear layers only,
  which the paper does not treat, only the last layer is fixed.
- ``igq``, ideal gas quotas (Vysogorets & Kempe 2023): 1 / (1 + F * n) for a layer of n weights,
  with one F for all layers; these are the lengths of coupled cylinders under the same force.

The factor (or F) is the value for which the layers keep the required number of weights in total. A
layer whose density would exceed 1 is kept whole, and its excess is distributed over all other
layers in proportion (the code of Su et al. distributes it over the layers that follow). Numbers are
rounded to integers by the largest remainder method, so that their sum is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

__all__ = ["Rule", "weights_per_layer"]

Rule = Literal["uniform", "uniform_plus", "er", "erk", "smart_ratio", "igq"]
LAST_LAYER = 0.3
"""Density that smart ratio fixes: for the last layer of a residual network, and for each linear
layer of any other network.
"""
LAST_LAYER_FLOOR = 0.2
"""Smallest density of the last layer by Uniform+."""


def weights_per_layer(
    rule: Rule, shapes: Sequence[Sequence[int]], kept: int, *, residual: bool = True
) -> list[int]:
    """Return the number of weights that each layer keeps.

    Args:
        rule: Name of a rule: ``"uniform"``, ``"uniform_plus"``, ``"er"``, ``"erk"``,
            ``"smart_ratio"`` or ``"igq"``.
        shapes: Shape (units, inputs, *kernel) of each layer's weight, in the order of the network.
        kept: Number of weights kept in total, in [0, sum of the sizes].
        residual: Whether smart ratio uses its rule for residual networks instead of that for other
            networks.

    Returns:
        One number per layer, at most its size; their sum is ``kept``.

    Raises:
        ValueError: If the rule is unknown, or the layers whose density a rule fixes have more than
            ``kept`` weights at that density.

    Example:
        >>> weights_per_layer("er", [(20, 10), (40, 20)], 45)
        [15, 30]
    """
    if rule not in get_args(Rule):
        raise ValueError(f"quota: {rule!r} is not one of {', '.join(get_args(Rule))}")
    sizes = [math.prod(shape) for shape in shapes]
    if rule == "igq":
        # At this force all layers together would keep less than half a weight.
        return _round_to_sum(
            _solve(lambda force: [n / (1 + force * n) for n in sizes], kept, 4.0 * len(sizes)),
            sizes,
            kept,
        )
    if rule == "smart_ratio":
        return _round_to_sum(_smart_shares(shapes, sizes, kept, residual), sizes, kept)
    if rule == "uniform_plus":
        return _round_to_sum(_plus_shares(shapes, sizes, kept), sizes, kept)
    return _round_to_sum(
        _fill([_relative_density(rule, shape) for shape in shapes], sizes, kept), sizes, kept
    )


def _plus_shares(shapes: Sequence[Sequence[int]], sizes: Sequence[int], kept: int) -> list[float]:
    """Return the fractional number of weights that each layer keeps by Uniform+.

    Args:
        shapes: Shape of each layer's weight.
        sizes: Number of weights of each layer.
        kept: Sum of the result.
    """
    whole = sizes[0] if len(sizes) > 1 and len(shapes[0]) > 2 else 0
    floor = LAST_LAYER_FLOOR * sizes[-1] if len(sizes) > 1 else 0.0
    if whole + floor > kept:
        first = "all of the first layer and " if whole else ""
        raise ValueError(
            f"uniform_plus keeps {first}{LAST_LAYER_FLOOR} of the last layer, {whole + floor:g}"
            f" weights, more than the {kept} that are to be left; use uniform or erk"
        )
    density = (kept - whole) / (sum(sizes) - whole)
    last = density * sizes[-1]
    if last < floor and (others := sum(sizes) - whole - sizes[-1]):
        last, density = floor, (kept - whole - floor) / others
    shares = [density * size for size in sizes[:-1]] + [last]
    return [float(whole), *shares[1:]] if whole else shares


def _smart_shares(
    shapes: Sequence[Sequence[int]], sizes: Sequence[int], kept: int, residual: bool
) -> list[float]:
    """Return the fractional number of weights that each layer keeps by smart ratio.

    Args:
        shapes: Shape of each layer's weight.
        sizes: Number of weights of each layer.
        kept: Sum of the result.
        residual: Whether to use the rule for residual networks.
    """
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
            f"smart_ratio keeps {LAST_LAYER} of {which}, {share:g} weights, more than the {kept}"
            " that are to be left; use erk or igq"
        )
    # The rule counts layers from l = 1, so L - l + 1 is the number of layers from l to the last.
    order = {index: (count - index, 1 if residual else index + 1) for index in others}
    ratios = [(left * left + left) / divisor**2 for left, divisor in order.values()]
    room = [sizes[index] for index in others]
    share = max(share, kept - sum(room))  # if all other layers are kept whole
    filled = _fill([1.0] * len(fixed), [sizes[index] for index in fixed], share) + _fill(
        ratios, room, kept - share
    )
    shares = dict(zip([*fixed, *others], filled, strict=True))
    return [shares[index] for index in range(count)]


def _relative_density(rule: str, shape: Sequence[int]) -> float:
    """Return the density of a layer by a rule, up to the common factor."""
    if rule == "uniform":
        return 1.0
    counted = shape if rule == "erk" else shape[:2]
    return sum(counted) / math.prod(counted)


def _fill(densities: Sequence[float], sizes: Sequence[int], kept: float) -> list[float]:
    """Return ``density * size * factor`` for each layer, at most its size, with the sum ``kept``.

    Args:
        densities: Density of each layer, up to the common factor.
        sizes: Number of weights of each layer.
        kept: Sum of the result.
    """
    open_layers = set(range(len(sizes)))
    while open_layers:
        left = kept - sum(size for index, size in enumerate(sizes) if index not in open_layers)
        factor = left / sum(densities[index] * sizes[index] for index in open_layers)
        full = {index for index in open_layers if densities[index] * factor >= 1}
        if not full:
            break
        open_layers -= full
    else:
        factor = 0.0
    return [
        densities[index] * size * factor if index in open_layers else float(size)
        for index, size in enumerate(sizes)
    ]


def _solve(shares: Callable[[float], list[float]], kept: int, high: float) -> list[float]:
    """Return the shares at the force at which their sum is ``kept``, by bisection.

    Args:
        shares: Function from the force to the shares, which decrease with it.
        kept: Sum of the result.
        high: Upper bound of the force; it is raised if it is too low.
    """
    low = 0.0
    while sum(shares(high)) > kept and high < 1e18:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shares(middle)) > kept else (low, middle)
    return shares(low)


def _round_to_sum(shares: Sequence[float], sizes: Sequence[int], kept: int) -> list[int]:
    """Round shares to integers with the sum ``kept``, by the largest remainder method.

    Each share is rounded down, and the layers with the largest remainders get one more weight each;
    of equal remainders the first layer goes first.

    Args:
        shares: Fractional number of weights of each layer.
        sizes: Number of weights of each layer, the upper bound of its share.
        kept: Sum of the result.
    """
    whole = [min(math.floor(share + 1e-9), size) for share, size in zip(shares, sizes, strict=True)]
    order = sorted(range(len(sizes)), key=lambda index: (whole[index] - shares[index], index))
    while (missing := kept - sum(whole)) > 0:
        for index in [index for index in order if whole[index] < sizes[index]][:missing]:
            whole[index] += 1
    for index in reversed(order):
        if (excess := sum(whole) - kept) > 0:
            whole[index] -= min(excess, whole[index])
    return whole
