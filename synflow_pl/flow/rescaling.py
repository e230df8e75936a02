"""Rescaling: keeps the numbers of the linear network in range at any depth.

R, the sum of the outputs, is a product of one factor per layer: it overflows float32 in a ResNet of
about 32 layers and float64 in ResNet-1202. But at a *cut*, a value that every path from input to
output crosses, R is linear in that value, so dividing it by a constant divides R, and with it every
score |w| dR/d|w|, by the same constant: the ranking does not change. Each cut is divided by the
largest power of two that is at most its largest entry, computed anew in each evaluation and
detached, so that only the exponent of a score changes. (If it were not detached, the layer before a
cut would get wrong scores.)
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from synflow_pl.flow.node import Node

__all__ = ["cuts", "power_of_two_scale", "scoring_dtype"]

# Each weight layer multiplies the flow by at most a few thousand, so float32, which ranges from
# 2**-127 to 2**127, holds the product of this many layers with a margin. A network with more layers
# between two cuts is scored in float64.
_MAX_LAYERS_BETWEEN_CUTS = 8


def scoring_dtype(own: torch.dtype, max_layers_between_cuts: int) -> torch.dtype:
    """Return the precision in which scores stay in range.

    Args:
        own: Precision of the network.
        max_layers_between_cuts: Largest number of weight layers between two cuts.

    Returns:
        ``own``, but at least float32, or float64 if there are too many layers between two cuts.
    """
    if max_layers_between_cuts > _MAX_LAYERS_BETWEEN_CUTS:
        return torch.float64
    return torch.float32 if own in (torch.float16, torch.bfloat16) else own


def power_of_two_scale(value: Tensor) -> Tensor:
    """Return the largest power of two that is at most the largest entry of a tensor.

    Args:
        value: Non-negative tensor.

    Returns:
        A detached scalar; one if the tensor is zero throughout.
    """
    peak = value.detach().amax()
    mantissa, _ = torch.frexp(peak)
    # peak / (2 * mantissa) is the power of two at or below peak, exactly: the quotient is
    # representable. (exp2 may be off by an ulp.)
    return torch.where(peak > 0, peak / (2 * mantissa), torch.ones_like(peak))


def cuts(
    nodes: list[Node], flow: set[int], inputs: Collection[int], outputs: tuple[int, ...]
) -> tuple[dict[int, int], int, list[int]]:
    """Find the values that every path from input to output crosses.

    In order of execution, every path crosses a value exactly if, at some moment, it is the only
    value computed so far that is still to be read.

    Args:
        nodes: Nodes of the linear network in order of execution.
        flow: Numbers of the values that carry flow.
        inputs: Numbers of the inputs.
        outputs: Numbers of the outputs.

    Returns:
        The number of each cut value by the index of the node that follows it; the largest number of
        weight layers between two cuts along any path; and the indices of the nodes that every path
        crosses, which means that no value computed before such a node is read after it.
    """
    last: dict[int, int] = {}
    for index, node in enumerate(nodes):
        last.update((number, index) for number in node.operands if number in flow)
    last.update((number, len(nodes)) for number in outputs)
    live = set(inputs)
    # Before the first weight layer the flow is ones and needs no rescaling.
    depth = dict.fromkeys(inputs, 0)
    cut_before: dict[int, int] = {}
    crossed: list[int] = []
    max_layers_between_cuts = 0
    for index, node in enumerate(nodes):
        operands = [number for number in node.operands if number in flow]
        if len(live) == 1 and depth[next(iter(live))] > 0:
            cut = cut_before[index] = next(iter(live))
            depth[cut] = 0
        reached = max((depth[number] for number in operands), default=0) + node.contraction
        max_layers_between_cuts = max(max_layers_between_cuts, reached)
        for number in node.outputs:
            if number in flow and number in last:
                live.add(number)
                depth[number] = reached
        live -= {number for number in live if last[number] <= index}
        if live.issubset(node.outputs):
            crossed.append(index)
    return cut_before, max_layers_between_cuts, crossed
