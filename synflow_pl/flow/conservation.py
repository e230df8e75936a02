"""Units: what the scores of the weights into a hidden unit sum to, and those of the weights out of
it (Tanaka et al. 2020, Theorem 1).

Which weights lead out of a unit is seen in the skeleton, whatever lies between two layers:
normalisation, pooling, flattening. Every unit puts out a number that no other does, whatever comes
to it, so that nothing passes from one layer *through* another. An input to which just that number
comes reads that unit and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from synflow_pl.flow.convolution import convolve
from synflow_pl.flow.linear_network import LinearNetwork, Node

__all__ = ["unit_sums"]


def unit_sums(
    skeleton: LinearNetwork, scores: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """By layer the sums of scores into each of its units, and out of each.

    Left out are units that more leads out of than weights which read them alone: a shortcut, or an
    input to which another layer's signal is added. Units of the last layer have no weights out. So
    a layer may be left out altogether.

    Args:
        skeleton: of the network.
        scores: by parameter name, in the weights' shapes.

    Returns:
        By the name of the weights into the units, in the order of ``scores``: two tensors (units
            left,), into and out of.
    """
    weights = {
        # Stands for a tensor of ones, at no cost: layers are not computed.
        name: torch.ones((), dtype=torch.float64, device=score.device).expand(score.shape)
        for name, score in scores.items()
        if name in skeleton.weights
    }
    plain, groups, _ = _pass(skeleton, weights, {})
    layers = [
        name for name in weights if len(plain.get(name, ())) == 1
    ]  # a weight that is read twice has no inputs of its own
    if not layers:
        return {}
    sizes = [len(weights[name]) for name in layers]
    # A generator of its own, so that no random state moves on. float64, so that tens of thousands
    # of numbers are far apart.
    drawn = torch.rand(sum(sizes), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    marks = (0.5 + drawn / 2).to(weights[layers[0]].device).requires_grad_()
    came, _, leaving = _pass(skeleton, weights, dict(zip(layers, marks.split(sizes), strict=True)))

    ascending, order = marks.detach().sort()
    out_of = torch.zeros_like(ascending)
    elsewhere = [
        leaving,
        *(
            signal.sum()
            for name, signals in came.items()
            if name not in layers
            for signal in signals
        ),
    ]
    for name in layers:
        # A pass keeps its numbers in range by powers of two, so what comes back of a mark is its
        # mantissa.
        seen, _ = torch.frexp(came[name][0].detach() / plain[name][0].detach())
        above = torch.searchsorted(ascending, seen).clamp(1, len(order) - 1)
        near = torch.where(seen - ascending[above - 1] < ascending[above] - seen, above - 1, above)
        single = (ascending[near] - seen).abs() < 1e-10
        out_of.index_add_(0, order[near[single]], _by_input(scores[name], groups[name])[single])
        elsewhere.append(came[name][0][~single].sum())
    (escaping,) = torch.autograd.grad(torch.stack(elsewhere).sum(), marks)
    found = {}
    for name, out, escapes in zip(layers, out_of.split(sizes), escaping.split(sizes), strict=True):
        if (closed := escapes == 0).any():
            found[name] = (scores[name].flatten(1).sum(1, dtype=torch.float64)[closed], out[closed])
    return found


def _pass(
    skeleton: LinearNetwork, weights: Mapping[str, Tensor], marks: Mapping[str, Tensor]
) -> tuple[dict[str, list[Tensor]], dict[str, int], Tensor]:
    """One pass in which each layer puts out its units' marks, or ones.

    Returns:
        What comes to the inputs of each layer, summed over positions, (inputs,) each time that its
        weight is read; its groups; and what comes to the network's output past all layers.
        Transposed convolutions are no layers here: what they do is passed through.
    """
    came: dict[str, list[Tensor]] = {}
    groups: dict[str, int] = {}

    def compute(function: Callable[..., Any], step: Node, arguments: Sequence[Any]) -> Any:
        convolution = step.function is convolve
        if not step.contraction or (convolution and arguments[6]):
            return function(*arguments)
        name = step.weight or next(
            (name for name, weight in weights.items() if arguments[1] is weight), ""
        )
        if name not in weights:
            return function(*arguments)
        signal, *rest = arguments
        channel = 1 if convolution else -1
        came.setdefault(name, []).append(signal.movedim(channel, 0).flatten(1).sum(1))
        groups[name] = arguments[8] if convolution else 1
        shape = function(
            *tree_map_only(Tensor, lambda tensor: tensor.to("meta"), [signal, *rest])
        ).shape
        mark = marks.get(
            name,
            torch.ones((), dtype=signal.dtype, device=signal.device).expand(len(weights[name])),
        )
        return (
            mark.view(-1, *[1] * (len(shape) - 2)).expand(shape)
            if convolution
            else mark.expand(shape)
        )

    with torch.enable_grad():
        leaving = skeleton.flow(weights, gains=False, compute=compute)
    return came, groups, leaving


def _by_input(score: Tensor, groups: int) -> Tensor:
    """(inputs,) float64: the sum of the scores of the weights that read each input."""
    return (
        score.reshape(groups, -1, score.shape[1], score[0, 0].numel())
        .sum((1, 3), dtype=torch.float64)
        .flatten()
    )
