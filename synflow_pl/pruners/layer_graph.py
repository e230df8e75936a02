"""Wiring: which unit's signal each input of a layer reads, through whatever lies between two
layers: normalisation, pooling, flattening, shortcuts, concatenation.

Found in one pass through the network's skeleton in which every layer reads ones, so that nothing
passes from one layer *through*
another: what then arrives at an input is linear in the outputs of exactly those layers whose signal
    it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from synflow_pl.flow import LinearNetwork
from synflow_pl.flow.convolution import convolve
from synflow_pl.flow.node import Node

__all__ = ["LayerGraph", "layer_graph"]


@dataclass
class LayerGraph:
    """How layers are connected, by the names of their weights.

    Attributes:
        feeds: (reader, source) to (inputs,) int64: the unit of the source that each input of the
            reader reads, -1 where none.
        entries: reader to (inputs,) bool: whether an input reads the network's own input.
        exits: source to (units,) bool: whether a unit reaches the network's output through no other
            layer.
        groups: of each layer's convolution, 1 for a linear layer.
    """

    feeds: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    entries: dict[str, Tensor] = field(default_factory=dict)
    exits: dict[str, Tensor] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)


def layer_graph(skeleton: LinearNetwork, weights: dict[str, Tensor]) -> LayerGraph:
    """Read the wiring off a skeleton.

    Args:
        skeleton: of the network.
        weights: (units, inputs / groups, *kernel) by name, of the layers to be wired; their shapes
            and device count.

    Raises:
        ValueError: for a weight that is read otherwise than by one linear or convolution layer, or
            an input that mixes units.
    """
    # float64, so that a unit's number can be read off a quotient.
    scales = {
        name: torch.ones(len(weight), dtype=torch.float64, device=weight.device, requires_grad=True)
        for name, weight in weights.items()
    }
    # Never multiplied with anything, so one number in memory for all weights of a unit.
    scaled = {
        name: scales[name].view(-1, *[1] * (weight.dim() - 1)).expand(weight.shape)
        for name, weight in weights.items()
    }
    arriving: dict[str, Tensor] = {}
    found = LayerGraph()

    def compute(function: Callable[..., Any], step: Node, arguments: Sequence[Any]) -> Any:
        convolution = step.function is convolve
        name = step.contraction and (
            step.weight
            or next((name for name, weight in scaled.items() if arguments[1] is weight), None)
        )
        if name not in weights or (convolution and arguments[6]):
            return function(*arguments)
        signal = arguments[0]
        channel = 1 if convolution else -1
        arriving[name] = signal.movedim(channel, 0).flatten(1).sum(1)
        found.groups[name] = arguments[8] if convolution else 1
        # The layer reads ones instead; of what it would make of them, only which unit it comes from
        # matters, and the shape.
        shape = function(
            *(
                argument.to("meta") if isinstance(argument, Tensor) else argument
                for argument in arguments
            )
        ).shape
        return scales[name].view(-1, *[1] * (len(shape) - 2 if convolution else 0)).expand(shape)

    with torch.enable_grad():
        leaving = skeleton.flow(scaled, gains=False, compute=compute)
    if strange := sorted(weights.keys() - arriving.keys()):
        raise ValueError(
            f"PHEW walks through linear and convolution layers that are read once; it cannot walk through {', '.join(strange)};"
            " exclude them, or choose SynFlow"
        )
    exits = torch.autograd.grad(
        leaving, list(scales.values()), retain_graph=True, materialize_grads=True
    )
    found.exits = {name: gradient > 0 for name, gradient in zip(scales, exits, strict=True)}
    # The products J t of the linear map J from the scales of one layer to all that arrives, by
    # differentiating twice.
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
                        f"PHEW cannot walk from {source} to {reader}: an input there mixes several units; choose SynFlow"
                    )
                found.feeds[reader, source] = unit.round().long() - 1
                rest[reader] -= one
    found.entries = {name: left > 1e-9 * arriving[name].detach() for name, left in rest.items()}
    return found
