"""Conservation of flow at every cut of a linear network, from its gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from synflow_pl.flow import LinearNetwork
from synflow_pl.flow.node import Node


def conservation_error(linear_network: LinearNetwork, weights: Mapping[str, Tensor]) -> float:
    """Return how far flow is from being conserved, in [0, inf) (Tanaka et al. 2020, Theorem 2).

    At each cut the flow, the sum of value * dR/dvalue, is compared with R. The result is the
    largest relative difference over all cuts; only rounding makes it nonzero.

    Args:
        weights: See :meth:`LinearNetwork.flow`.
    """
    crossed: list[Tensor] = []

    def watch(node: Node | None, arguments: Sequence[Any]) -> None:
        if node is None:
            crossed.append(arguments[0])

    dtype = next(iter(weights.values())).dtype if weights else linear_network.dtype
    constants = linear_network._constants
    inputs = {
        number: constants[number].to(dtype, copy=True).requires_grad_()
        for number in linear_network._sources
    }
    linear_network._constants = constants | inputs
    try:
        with torch.enable_grad():
            total = linear_network.flow(
                {name: weight.detach() for name, weight in weights.items()}, watch=watch
            )
        through = torch.autograd.grad(total, [*inputs.values(), *crossed])
    finally:
        linear_network._constants = constants
    passing = [
        (value * gradient).sum().detach()
        for value, gradient in zip([*inputs.values(), *crossed], through, strict=True)
    ]
    entering = torch.stack(passing[: len(inputs)]).sum()
    return max(
        float((flow / total.detach() - 1).abs()) for flow in (entering, *passing[len(inputs) :])
    )
