"""Costs: what a budget limits, per kept weight and in all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from synflow_pl.diagnosis.flops import count_flops
from synflow_pl.graph.trace import Graph
from synflow_pl.masks import Masks

__all__ = ["Costs", "flop_costs", "parameter_costs", "weight_costs"]


@dataclass(frozen=True)
class Costs:
    """Cost of each kept weight, and of what a pruning does not change.

    Attributes:
        unit: What is counted, for messages: ``"weights"``, ``"FLOPs"`` or ``"parameters"``.
        of_weight: Cost of a kept weight of each layer, by name.
        constant: Cost of everything else.
        others: Shapes of parameters that are no weights and count entry by entry, by name; units
            that are removed take their entries with them.
    """

    unit: str
    of_weight: Mapping[str, float]
    constant: float = 0.0
    others: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def total(self, weights: Mapping[str, Tensor]) -> float:
        """Return the cost of the dense network.

        Args:
            weights: Weights by name.
        """
        return (
            self.constant
            + sum(self.of_weight[name] * weight.numel() for name, weight in weights.items())
            + sum(torch.Size(shape).numel() for shape in self.others.values())
        )


def weight_costs(weights: Mapping[str, Tensor]) -> Costs:
    """Return costs that count the kept weights."""
    return Costs("weights", dict.fromkeys(weights, 1.0))


def parameter_costs(network: nn.Module, weights: Mapping[str, Tensor]) -> Costs:
    """Return costs that count the kept weights and all other parameters."""
    others = {
        name: tuple(parameter.shape)
        for name, parameter in network.named_parameters()
        if name not in weights
    }
    return Costs("parameters", dict.fromkeys(weights, 1.0), others=others)


def flop_costs(graph: Graph, weights: Mapping[str, Tensor]) -> Costs:
    """Return costs that count the FLOPs of one forward pass as a diagnosis does.

    Args:
        graph: Graph of the network.
        weights: Weights by name.
    """
    dense = Masks({name: torch.ones(w.shape, dtype=torch.bool) for name, w in weights.items()})
    counted = count_flops(graph, dense)
    return Costs(
        "FLOPs",
        {name: counted.dense_of[name] / weight.numel() for name, weight in weights.items()},
        constant=counted.dense - sum(counted.dense_of[name] for name in weights),
    )
