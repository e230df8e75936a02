"""Conservation: sums of scores into and out of hidden units (Tanaka et al. 2020, Theorem 1).

Which weights read a unit is determined on the linear network, whatever lies between two layers
(normalisation, pooling, flattening): each unit outputs a random number of its own instead of its
value. An input that receives exactly one of these numbers reads that unit and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from synflow_pl.flow.convolution import convolve
from synflow_pl.flow.linear_network import LinearNetwork
from synflow_pl.flow.node import Node

__all__ = ["flow_between_layers", "unit_sums"]


def unit_sums(
    linear_network: LinearNetwork, scores: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the sums of scores into and out of the hidden units of each layer.

    A unit is left out if its output reaches more than the weights that read it alone: a unit on a
    shortcut, or one that is added to another layer's unit before it is read. So are units of the
    last layer, which have no outgoing weights. A layer without any remaining unit is not in the
    result.

    Args:
        linear_network: Positive linear network, made by :func:`synflow_pl.flow.linearise`.
        scores: Scores in the weights' shapes, by parameter name.

    Returns:
        Sums into and out of each remaining unit, two tensors of shape (units,), by the name of the
        weight into the units, in the order of ``scores``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from synflow_pl.flow import linearise, unit_sums
        >>> network = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 2))
        >>> linear_network = linearise(network, (torch.ones(1, 2),))
        >>> first, last = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
        >>> sums = unit_sums(linear_network, {"0.weight": first, "1.weight": last})
        >>> into, out_of = sums["0.weight"]
        >>> into.tolist(), out_of.tolist()
        ([3.0], [7.0])
    """
    weights = {
        # An expanded scalar serves as a tensor of ones, since layers are not computed.
        name: torch.ones((), dtype=torch.float64, device=score.device).expand(score.shape)
        for name, score in scores.items()
        if name in linear_network.weights
    }
    plain, groups, _ = flow_between_layers(linear_network, weights, {})
    layers = [
        name for name in weights if len(plain.get(name, ())) == 1
    ]  # the inputs of a weight that is read twice are ambiguous
    if not layers:
        return {}
    sizes = [len(weights[name]) for name in layers]
    # A separate generator leaves the global random state unchanged. In float64, tens of thousands
    # of random numbers are far apart.
    drawn = torch.rand(sum(sizes), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    marks = (0.5 + drawn / 2).to(weights[layers[0]].device).requires_grad_()
    received, _, output = flow_between_layers(
        linear_network, weights, dict(zip(layers, marks.split(sizes), strict=True))
    )

    ascending, order = marks.detach().sort()
    out_of = torch.zeros_like(ascending)
    elsewhere = [
        output,
        *(
            signal.sum()
            for name, signals in received.items()
            if name not in layers
            for signal in signals
        ),
    ]
    for name in layers:
        # The linear network rescales flow by powers of two, which leaves the mantissa unchanged.
        mantissa, _ = torch.frexp(received[name][0].detach() / plain[name][0].detach())
        above = torch.searchsorted(ascending, mantissa).clamp(1, len(order) - 1)
        near = torch.where(
            mantissa - ascending[above - 1] < ascending[above] - mantissa, above - 1, above
        )
        single = (ascending[near] - mantissa).abs() < 1e-10
        out_of.index_add_(0, order[near[single]], _by_input(scores[name], groups[name])[single])
        elsewhere.append(received[name][0][~single].sum())
    (escaping,) = torch.autograd.grad(torch.stack(elsewhere).sum(), marks)
    sums = {}
    for name, out, escapes in zip(layers, out_of.split(sizes), escaping.split(sizes), strict=True):
        if (closed := escapes == 0).any():
            sums[name] = (scores[name].flatten(1).sum(1, dtype=torch.float64)[closed], out[closed])
    return sums


def flow_between_layers(
    linear_network: LinearNetwork, weights: Mapping[str, Tensor], marks: Mapping[str, Tensor]
) -> tuple[dict[str, list[Tensor]], dict[str, int], Tensor]:
    """Evaluate the linear network with each layer's output replaced by marks, or by ones.

    Transposed convolutions are not layers here: they are computed.

    Args:
        linear_network: Positive linear network, made by :func:`synflow_pl.flow.linearise`.
        weights: Weights by parameter name, of which only identity and shape matter.
        marks: Marks of shape (units,) by parameter name; other layers output ones.

    Returns:
        By parameter name, what the inputs of a layer receive, summed over positions, one tensor of
        shape (inputs,) each time the weight is read; by parameter name, the number of groups; and
        what the output of the network receives without passing a layer.
    """
    received: dict[str, list[Tensor]] = {}
    groups: dict[str, int] = {}

    def compute(function: Callable[..., Any], node: Node, arguments: Sequence[Any]) -> Any:
        convolution = node.function is convolve
        if not node.contraction or (convolution and arguments[6]):
            return function(*arguments)
        # A matrix that is read as it is may have its units in either dimension.
        name = node.weight or next(
            (name for name, weight in weights.items() if convolution and arguments[1] is weight), ""
        )
        if name not in weights:
            return function(*arguments)
        signal, *rest = arguments
        channel = 1 if convolution else -1
        received.setdefault(name, []).append(signal.movedim(channel, 0).flatten(1).sum(1))
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
        output = linear_network.flow(weights, gains=False, compute=compute)
    return received, groups, output


def _by_input(score: Tensor, groups: int) -> Tensor:
    """Return the sum of the scores of the weights that read each input, (inputs,) float64."""
    return (
        score.reshape(groups, -1, score.shape[1], score[0, 0].numel())
        .sum((1, 3), dtype=torch.float64)
        .flatten()
    )
