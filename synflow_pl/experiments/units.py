"""Units: what comes in goes out (Tanaka et al. 2020, Theorem 1 and Figure 3).

For a score of the form dR/dw * w, synaptic saliency, and a homogeneous network without biases, the scores of the weights into a hidden
unit and those of the weights out of it have the same sum. SynFlow's score is of this form. So are w dL/dw, which SNIP takes the
magnitude of, and almost w Hg, GraSP's; a magnitude or a random number is not.

Where shortcuts join the outputs of several layers channel by channel, no weight leaves one of them alone: those units count as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synflow_pl.flow import linearise
from synflow_pl.masks import prunable
from synflow_pl.pruners.wiring import Wiring, wiring

__all__ = ["Units", "unit_sums", "wire"]


@dataclass(frozen=True)
class Units:
    """The hidden units made by one layer, or by this and later ones whose outputs are joined with its own.

    Attributes:
        layer: name of the layer's weight.
        number: (units,) int64, which of the layer's units.
        into: (units,) float64, sum of the scores of the weights into each.
        out: (units,) float64, sum of the scores of the weights that read each.
    """

    layer: str
    number: Tensor
    into: Tensor
    out: Tensor


def wire(network: nn.Module, inputs: tuple[Tensor, ...]) -> Wiring:
    """Which unit's signal each input of a layer reads. The network stays as it is.

    Raises:
        ValueError: where units cannot be told apart (attention, a layer that is used twice), naming the layer.
    """
    skeleton = linearise(network, inputs)
    return wiring(skeleton, {name: weight.detach() for name, weight in prunable(network).items() if name in skeleton.weights})


def unit_sums(scores: Mapping[str, Tensor], wires: Wiring) -> list[Units]:
    """The sums of scores into and out of every hidden unit.

    Args:
        scores: (units, inputs / groups, *kernel) by the name of the weight; of every layer that ``wires`` knows.
        wires: of the network, as :func:`wire` finds them.

    Returns:
        Layer by layer, input first. Units that reach the output without passing a further layer, and those joined with them or with the
        network's input, are not hidden and left out.
    """
    nodes, first = 0, {}
    for name in wires.groups:
        first[name] = nodes
        nodes += len(scores[name])
    joined = _joined(wires, {name: torch.arange(len(scores[name])) + first[name] for name in wires.groups})
    into, out = torch.zeros(nodes, dtype=torch.float64), torch.zeros(nodes, dtype=torch.float64)
    outermost = torch.zeros(nodes, dtype=torch.bool)
    read = torch.zeros(nodes, dtype=torch.bool)
    for name, of_units in joined.sources.items():
        into.index_add_(0, of_units, scores[name].flatten(1).sum(1, dtype=torch.float64).cpu())
        outermost[of_units[wires.exits[name].cpu()]] = True
    for name, of_inputs in joined.readers.items():
        reads = of_inputs >= 0
        out.index_add_(0, of_inputs[reads], _by_input(scores[name], wires.groups[name])[reads])
        read[of_inputs[reads]] = True
        outermost[of_inputs[reads & wires.entries[name].cpu()]] = True
    hidden = read & ~outermost
    found = []
    for name in wires.groups:
        numbers = torch.arange(len(scores[name]))
        own = (joined.sources[name] == numbers + first[name]) & hidden[joined.sources[name]]
        if own.any():
            at = numbers[own] + first[name]
            found.append(Units(name, numbers[own], into[at], out[at]))
    return found


@dataclass(frozen=True)
class _Joined:
    """By layer, the number of the unit (through all layers) that each of its units, and each of its inputs, counts as: the lowest of
    those that are joined. -1 for an input that reads no unit.
    """

    sources: dict[str, Tensor]
    readers: dict[str, Tensor]


def _joined(wires: Wiring, sources: dict[str, Tensor]) -> _Joined:
    readers = {name: torch.full(entry.shape, -1) for name, entry in wires.entries.items()}
    feeds = [(reader, source, unit.cpu()) for (reader, source), unit in wires.feeds.items()]
    changed = True
    while changed:
        changed = False
        for reader, source, unit in feeds:
            reads = unit >= 0
            mine, theirs = readers[reader][reads], sources[source]
            low = theirs[unit[reads]]
            low = torch.where(mine >= 0, torch.minimum(mine, low), low)
            lowered = theirs.scatter_reduce(0, unit[reads], low, "amin")
            if not torch.equal(lowered, theirs) or not torch.equal(low, mine):
                changed = True
                sources[source] = lowered
                readers[reader][reads] = low
    return _Joined(sources, readers)


def _by_input(score: Tensor, groups: int) -> Tensor:
    """(inputs,) float64: the sum of the scores of the weights that read each input of the layer."""
    grouped = score.unflatten(0, (groups, -1)).flatten(3) if score.dim() > 2 else score.view(groups, -1, score.shape[1], 1)
    return grouped.sum((1, 3), dtype=torch.float64).flatten().cpu()
