"""SynFlow's scores of a pruned network, their statistics, and the conservation of flow."""

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
    """Mean, population variance and sum of the scores of a layer's kept weights.

    All are zero if the layer has no kept weight.
    """

    mean: float
    variance: float
    sum: float


def moments(scores: Tensor, mask: Tensor, power: int = 0) -> Moments:
    """Return the moments of ``scores * 2**power`` over the kept weights.

    Args:
        scores: Scores of one parameter.
        mask: Mask of the parameter, of the same shape.
        power: Exponent of the factor 2**power that the scores lack.

    Returns:
        The moments; infinite where they exceed double precision.
    """
    kept = scores[mask.to(scores.device)].double()
    if kept.numel() == 0:
        return Moments(0.0, 0.0, 0.0)
    variance, mean = torch.var_mean(kept, correction=0)
    return Moments(_scaled(mean, power), _scaled(variance, 2 * power), _scaled(kept.sum(), power))


def _scaled(value: Tensor, power: int) -> float:
    try:
        return math.ldexp(float(value), power)
    except OverflowError:
        return math.copysign(math.inf, float(value))


def synaptic_flow(
    linear_network: LinearNetwork, network: nn.Module, masks: Masks
) -> tuple[dict[str, Tensor], float, int]:
    """Return SynFlow's scores of the pruned network and the flow at its output.

    The score of a weight is S(w) = |w| dR/d|w| (Tanaka et al. 2020, Equation 2).

    Args:
        linear_network: The positive linear network of ``network``.
        network: The pruned network. Its pruned weights need not be zero.
        masks: Masks of the network.

    Returns:
        The scores of each masked parameter by name, zero for a weight that no flow passes; the
        flow R at the output; and the exponent of a power of two by which scores and R have still
        to be multiplied. It keeps the scores of deep networks in range.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    device = next(iter(parameters.values())).device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    weights = {
        name: magnitude(parameters[name]).to(dtype) * masks[name].to(device)
        for name in masks.weights
        if name in linear_network.weights
    }
    powers: list[int] = []

    def watch(step: Node | None, arguments: Sequence[Any]) -> None:
        if step is None:
            powers.append(round(math.log2(float(arguments[1]))))

    total, gradients = linear_network.flow_and_gradients(weights, watch=watch)
    scores = {name: torch.zeros_like(parameters[name], dtype=dtype) for name in masks.weights}
    scores |= {name: weights[name] * gradient for name, gradient in gradients.items()}
    return scores, float(total), sum(powers)


def conservation_error(sums: Mapping[str, float], separating: Collection[str]) -> float:
    """Return the coefficient of variation of the sums of scores of the separating layers.

    A separating layer is one that every path from input to output passes exactly once, so it is a
    cut between input and output. By Theorem 2 of Tanaka et al. 2020 (network-wise conservation)
    the sums of synaptic saliency of such layers agree: all are R.

    Args:
        sums: Sum of the scores of each parameter, by name.
        separating: Names of the separating parameters.

    Returns:
        The population standard deviation over the mean; zero if there are fewer than two
        separating layers or if all their sums are zero.
    """
    values = torch.tensor([sums[name] for name in sums if name in separating], dtype=torch.float64)
    if len(values) < 2 or not bool(values.any()):
        return 0.0
    deviation, mean = torch.std_mean(values / values.abs().max(), correction=0)
    return float(deviation / mean.abs())
