"""Active paths: the paths of a network that are open for given inputs.

The output of a network of linear layers and pointwise functions phi is a sum over all paths from
input to output: the product of the weights on the path, times the input where it starts, times its
activation, the product of phi(z) / z over the values z that it passes. For ReLU this factor is 1
where z > 0 and 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from synflow_pl.flow.acting_parameters import graph_weights
from synflow_pl.flow.builder import Builder
from synflow_pl.flow.linear_network import LinearNetwork
from synflow_pl.flow.linearise import translate
from synflow_pl.graph import operators
from synflow_pl.graph.trace import Graph, Operation, trace

__all__ = ["linearise_active"]

# Pointwise functions that are zero at zero, or nearly so. All others are the identity, as in the
# positive linear network.
_GATED = (
    operators.RECTIFIERS
    | operators.ACTIVATIONS
    | operators.CLAMPS
    | operators.ONE_SIDED_CLAMPS
    | {"tanh"}
)


def linearise_active(network: nn.Module, inputs: tuple[Tensor, ...]) -> LinearNetwork:
    """Return the positive linear network of the paths that are open for some inputs.

    It differs from that of :func:`linearise` in two ways: flow starts as the squares of the inputs
    and not as ones, and a pointwise function multiplies it by its activation phi(z) / z, in [0, 1],
    when ``network`` runs on ``inputs``. Each example has a flow of its own.

    Args:
        network: Any module. It is run once, in eval mode, and left unchanged. Its weights decide
            which paths are open.
        inputs: Inputs of the network with their batch dimension.

    Raises:
        ValueError: If no output depends on an input, or if nothing is prunable.

    Example:
        >>> network = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
        >>> network[0].weight.data = torch.tensor([[2.0], [-2.0]])
        >>> paths = linearise_active(network, (torch.tensor([[3.0]]),))
        >>> [
        ...     bool(paths.flow({"0.weight": torch.tensor(mask)}, gains=False))
        ...     for mask in ([[1.0], [0.0]], [[0.0], [1.0]])
        ... ]  # the first unit is open, the second is not
        [True, False]
    """
    graph = trace(network, inputs)
    weights = graph_weights(network, graph)
    return translate(_ActiveBuilder(graph, weights, dict(network.named_parameters())), network)


class _ActiveBuilder(Builder):
    """Translates a graph into the linear network of its active paths."""

    uniform = False

    def __init__(self, graph: Graph, weights: Collection[str], parameters: Collection[str]) -> None:
        super().__init__(graph, weights, parameters)
        self._sources = {number: graph.tensors[number].abs().square() for number in self._sources}

    def add_identity(self, operation: Operation, argument: Any) -> None:
        output = operation.outputs[0]
        assert output is not None
        if operation.name not in _GATED or self.in_weights:
            return super().add_identity(operation, argument)
        before, after = self.tensor(argument), self.tensor(output)
        activation = torch.where(before == 0, 0.0, after / before).clamp(0, 1)
        self.add_node(operation, torch.mul, self.resolve(argument), self.constant(activation))
