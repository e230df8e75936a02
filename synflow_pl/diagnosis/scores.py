"""Scores: how much flow each layer of a pruned network carries, and whether it is conserved."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from synflow_pl.flow import LinearNetwork, magnitude
from synflow_pl.flow.node import Node
from synflow_pl.masks import Masks

__all__ = ["Moments", "conservation_error", "moments", "synaptic_flow"]


@dataclass(frozen=True)
class Moments:
    """Mean, variance (of the population) and sum of the scores of a layer's living weights; all
    zero where none lives.
    """

    mean: float
    variance: float
    sum: float


def moments(scores: Tensor, mask: Tensor, power: int = 0) -> Moments:
    """Of ``scores * 2**power`` where the mask is true. What exceeds double precision is
    infinite.
    """
    living = scores[mask.to(scores.device)].double()
    if living.numel() == 0:
        return Moments(0.0, 0.0, 0.0)
    variance, mean = torch.var_mean(living, correction=0)
    return Moments(_scaled(mean, power), _scaled(variance, 2 * power), _scaled(living.sum(), power))


def _scaled(value: Tensor, power: int) -> float:
    try:
        return math.ldexp(float(value), power)
    except OverflowError:
        return math.copysign(math.inf, float(value))


def synaptic_flow(
    skeleton: LinearNetwork, network: nn.Module, masks: Masks
) -> tuple[dict[str, Tensor], float, int]:
    """SynFlow's scores S(w) = |w| dR/d|w| in the pruned network (Tanaka et al. 2020, Equation 2), zeroed already or not.

    Returns:
        By name, the scores of every masked weight, zero for one that no flow passes; then R, the
        flow at the output; and a power of two that both have still to be multiplied by, which keeps
        deep networks in range.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    device = next(iter(parameters.values())).device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    weights = {
        name: (magnitude(parameters[name]).to(dtype) * masks[name].to(device)).requires_grad_()
        for name in masks.weights
        if name in skeleton.weights
    }
    powers: list[int] = []

    def watch(step: Node | None, arguments: Sequence[Any]) -> None:
        if step is None:
            powers.append(round(math.log2(float(arguments[1]))))

    with torch.enable_grad():
        total = skeleton.flow(weights, watch=watch)
    gradients = (
        torch.autograd.grad(total, list(weights.values()), materialize_grads=True)
        if weights
        else ()
    )
    scores = {name: torch.zeros_like(parameters[name], dtype=dtype) for name in masks.weights}
    scores |= {
        name: weights[name].detach() * gradient
        for name, gradient in zip(weights, gradients, strict=True)
    }
    return scores, float(total.detach()), sum(powers)


def conservation_error(sums: Mapping[str, float], separating: Collection[str]) -> float:
    """The coefficient of variation, standard deviation over mean (of the population), of the sums
    of scores of those layers that every path from input to output passes once; zero where there are
    fewer than two, or all sums are zero.

    Each such layer is a cut between input and output, so by Theorem 2 of Tanaka et al. 2020
    (network-wise conservation) their sums of
    synaptic saliency agree: all are R.
    """
    values = torch.tensor([sums[name] for name in sums if name in separating], dtype=torch.float64)
    if len(values) < 2 or not bool(values.any()):
        return 0.0
    deviation, mean = torch.std_mean(values / values.abs().max(), correction=0)
    return float(deviation / mean.abs())
