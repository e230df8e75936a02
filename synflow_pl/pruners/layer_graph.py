"""The graph of a network's layers: which unit of which layer each input of a layer reads.

Normalisation, pooling, flattening, shortcuts and concatenation may lie between two layers. The
graph is read from one pass through the positive linear network in which every layer receives ones
instead of its input, so that no signal passes *through* a layer. The signal at the input of a layer
is then linear in the outputs of exactly those layers that it reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from synflow_pl.flow import LinearNetwork
from synflow_pl.flow.conservation import flow_between_layers

__all__ = ["LayerGraph", "layer_graph"]


@dataclass
class LayerGraph:
    """Connections between layers, by the names of their weights.

    Attributes:
        feeds: Units (inputs,), int64, by (reader, source): unit of the source that an input reads,
            -1 for none.
        entries: Bool tensors (inputs,), by reader: whether an input reads the network's own input.
        exits: Bool tensors (units,), by source: whether a unit reaches the network's output through
            no other layer.
        groups: Number of groups of each layer's convolution, 1 for a linear layer.
    """

    feeds: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    entries: dict[str, Tensor] = field(default_factory=dict)
    exits: dict[str, Tensor] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)


def layer_graph(linear_network: LinearNetwork, weights: dict[str, Tensor]) -> LayerGraph:
    """Return the graph of the layers of a network.

    Args:
        linear_network: Positive linear network.
        weights: Weights (units, inputs / groups, *kernel) of the layers in the graph, by name; only
            their shapes and device are used.

    Raises:
        ValueError: If a weight is used otherwise than by one linear or convolution layer, or an
            input mixes several units.
    """
    # In float64 a quotient gives the exact number of a unit.
    scales = {
        name: torch.ones(len(weight), dtype=torch.float64, device=weight.device, requires_grad=True)
        for name, weight in weights.items()
    }
    # Only the shapes matter, so all weights of a unit share one number in memory.
    scaled = {
        name: scales[name].view(-1, *[1] * (weight.dim() - 1)).expand(weight.shape)
        for name, weight in weights.items()
    }
    received, groups, leaving = flow_between_layers(linear_network, scaled, scales)
    arriving = {name: signals[-1] for name, signals in received.items()}
    graph = LayerGraph(groups=groups)
    if unreachable := sorted(weights.keys() - arriving.keys()):
        raise ValueError(
            "PHEW walks through linear and convolution layers that are read once; it cannot walk"
            f" through {', '.join(unreachable)}; exclude them, or choose SynFlow"
        )
    exits = torch.autograd.grad(
        leaving, list(scales.values()), retain_graph=True, materialize_grads=True
    )
    graph.exits = {name: gradient > 0 for name, gradient in zip(scales, exits, strict=True)}
    # Let J be the linear map from the scales of one layer to the signals at all inputs. Products
    # J t come from differentiating twice.
    along = {name: torch.ones_like(value, requires_grad=True) for name, value in arriving.items()}
    total = torch.stack([(along[name] * value).sum() for name, value in arriving.items()]).sum()
    back = torch.autograd.grad(
        total, list(scales.values()), create_graph=True, materialize_grads=True
    )
    rest = {name: value.detach().clone() for name, value in arriving.items()}
    for (source, scale), gradient in zip(scales.items(), back, strict=True):
        if not gradient.requires_grad:
            continue
        numbers = torch.arange(1, len(scale) + 1, dtype=scale.dtype, device=scale.device)
        plain, numbered = (
            torch.autograd.grad(
                (gradient * tangent).sum(),
                list(along.values()),
                retain_graph=True,
                materialize_grads=True,
            )
            for tangent in (torch.ones_like(numbers), numbers)
        )
        for reader, one, many in zip(along, plain, numbered, strict=True):
            reads = one > 0
            if reads.any():
                unit = torch.where(reads, many / one, 0.0)
                if bool((unit - unit.round()).abs().max() > 1e-6):
                    raise ValueError(
                        f"PHEW cannot walk from {source} to {reader}: an input there mixes several"
                        " units; choose SynFlow"
                    )
                graph.feeds[reader, source] = unit.round().long() - 1
                rest[reader] -= one
    graph.entries = {name: left > 1e-9 * arriving[name].detach() for name, left in rest.items()}
    return graph
