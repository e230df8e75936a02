"""linearise(): from the graph of a network to its positive linear network."""

from __future__ import annotations

from torch import Tensor, nn

from synflow_pl.flow.acting_parameters import graph_weights
from synflow_pl.flow.builder import Builder
from synflow_pl.flow.linear_network import LinearNetwork
from synflow_pl.flow.replay import weights_nonzero_after_masking
from synflow_pl.flow.rules import apply_rule
from synflow_pl.graph.trace import Graph, trace

__all__ = ["linearise", "translate"]


def linearise(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    graph: Graph | None = None,
    *,
    open_gates: bool = False,
) -> LinearNetwork:
    """Return the positive linear network of ``network`` at the shapes of ``inputs``.

    Args:
        network: Any module. It is run once and left unchanged. The linear network does not store
            its weights: they are passed to each evaluation.
        inputs: One tensor per input of the network with the batch dimension, as returned by
            :func:`example_of`.
        graph: Graph of the network, if it has been traced already.
        open_gates: Whether flow also passes through gates, queries and keys to what they act on.
            Such a network is not linear: it shows what is connected (see
            :mod:`synflow_pl.flow.connectivity`), not how much flows.

    Raises:
        ValueError: If no output depends on an input, or if nothing is prunable.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from synflow_pl.flow import linearise
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> sorted(linearise(network, (torch.ones(1, 2),)).weights)
        ['0.weight', '2.weight']
    """
    graph = trace(network, inputs) if graph is None else graph
    weights = graph_weights(network, graph)
    parameters = dict(network.named_parameters())
    linear_network = translate(Builder(graph, weights, parameters, open_gates), network)
    linear_network.nonzero_after_masking = (
        weights_nonzero_after_masking(graph, weights, parameters) & linear_network.weights
    )
    return linear_network


def translate(builder: Builder, network: nn.Module) -> LinearNetwork:
    """Return the linear network of all operations of a graph.

    Args:
        builder: Builder with the graph.
        network: Network that was traced.

    Raises:
        ValueError: If no output depends on an input.
    """
    for operation in builder.graph.operations:
        if builder.visit(operation):
            apply_rule(builder, operation)
    return builder.finish(type(network).__name__)
