"""Linearise: from a recording to the positive linear skeleton of a network, the thing that synaptic
flow flows through.
"""

from __future__ import annotations

from torch import Tensor, nn

from synflow_pl.flow.builder import Builder
from synflow_pl.flow.linear_network import LinearNetwork
from synflow_pl.flow.replay import uneven_weights
from synflow_pl.flow.rules import apply_rule
from synflow_pl.graph.trace import Graph, trace
from synflow_pl.masks import prunable

__all__ = ["linearise"]


def linearise(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    recording: Graph | None = None,
    *,
    open_gates: bool = False,
) -> LinearNetwork:
    """The positive linear skeleton of ``network`` at the shapes of ``inputs``.

    Args:
        network: any module; read once, left as it was found. Its weights are not kept: the skeleton
            asks for them in each pass.
        inputs: one tensor per input of the network, batch dimension included, as :func:`example_of`
            gives them.
        recording: the network's recording, where one is at hand.
        open_gates: let flow come through gates, queries and keys too, into what they act on. Such a
            skeleton is not linear: it tells what is connected to what
            (:mod:`synflow_pl.flow.connectivity`), not how much flows.

    Raises:
        ValueError: if no input reaches an output, or nothing is prunable.
    """
    recording = trace(network, inputs) if recording is None else recording
    weights, parameters = prunable(network), dict(network.named_parameters())
    builder = Builder(recording, weights, parameters, open_gates)
    for operation in recording.operations:
        if builder.turn_to(operation):
            apply_rule(builder, operation)
    skeleton = builder.finish(type(network).__name__)
    skeleton.uneven = uneven_weights(recording, weights, parameters) & skeleton.weights
    return skeleton
