"""Cuts: how the skeleton's numbers are kept in range.

R, the sum of the outputs, is a product of one factor per layer: it overflows float32 in a ResNet of about 32 layers and float64 in
ResNet-1202. But at a *cut*, a value that every path from input to output crosses, R is linear in that value, so dividing it by a
constant divides R, and with it every score |w| dR/d|w|, by that same constant: the ranking does not change. We divide at each cut by
the power of two next to its largest entry, found anew in each pass and detached, so that nothing of a score changes but its exponent.
(Attached, the layer before a cut would get the wrong scores.)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from synflow_pl.flow.linear_network import Node

__all__ = ["LONGEST_STRETCH", "cuts", "power_of_two_scale"]

# A stretch is the number of weight layers between two cuts. Each multiplies the flow by at most a
# few thousand, so float32's range of 2**127 either way holds about this many with room to spare; a
# network with a longer stretch is scored in float64.
LONGEST_STRETCH = 8


def power_of_two_scale(value: Tensor) -> Tensor:
    """The power of two at or below the largest entry of a value, which must not be negative, as a
    detached scalar; one for zeros.
    """
    peak = value.detach().amax()
    mantissa, _ = torch.frexp(peak)
    # peak / (2 * mantissa) is the power of two at or below peak, exactly: the quotient is
    # representable. (exp2 may be off by an ulp.)
    return torch.where(peak > 0, peak / (2 * mantissa), torch.ones_like(peak))


def cuts(
    steps: list[Node], flow: set[int], inputs: Collection[int], outputs: tuple[int, ...]
) -> tuple[dict[int, int], int, list[int]]:
    """Where every path crosses one value: by the index of the step that follows, the number of the
    cut value.

    In order of execution, a value is crossed by every path exactly if, at some moment, it is the
    only one made that is still to be read. Also returns the longest stretch, in weight layers, from
    cut to cut along any path, and the indices of the steps that every path crosses: no value made
    before such a step is read after it.
    """
    last: dict[int, int] = {}
    for index, step in enumerate(steps):
        last.update((number, index) for number in step.operands if number in flow)
    last.update((number, len(steps)) for number in outputs)
    live = set(inputs)
    # The input itself is ones; nothing has to be brought back in range before the first weight
    # layer.
    depth = dict.fromkeys(inputs, 0)
    found: dict[int, int] = {}
    crossed: list[int] = []
    stretch = 0
    for index, step in enumerate(steps):
        operands = [number for number in step.operands if number in flow]
        if len(live) == 1 and depth[next(iter(live))] > 0:
            cut = found[index] = next(iter(live))
            depth[cut] = 0
        reached = max((depth[number] for number in operands), default=0) + step.contraction
        stretch = max(stretch, reached)
        for number in step.outputs:
            if number in flow and number in last:
                live.add(number)
                depth[number] = reached
        live -= {number for number in live if last[number] <= index}
        if live.issubset(step.outputs):
            crossed.append(index)
    return found, stretch, crossed
