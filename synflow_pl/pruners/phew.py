"""PHEW: paths with higher edge weights (Patil & Dovrolis 2021).

The paper is "PHEW: constructing sparse networks that learn fast and generalize well without any
training data". The network kept is a union of random walks from input to output. From a unit, a
walk takes one of the weights that read it with a probability proportional to the magnitude,

    P(i -> j) = |w_ij| / sum over k of |w_ik|        (Equation 4),

so that paths of large weights are likely, but, unlike with a ranking by them, do not all pass the
same few units. Walks start in turn from each input channel and, backwards, from each output unit.
In a convolution a unit is a channel and a step is one entry of a kernel. At a shortcut a walk
continues with any weight that reads the same value, and a backward walk with any weight into a unit
that contributes to it.

Density is exact: walks are added while they fit. The remaining weights are the largest between
units that walks have passed. Each weight kept lies on a path at the network's input size, and not
only in the graph of channels: an entry of a kernel that reads nothing but padding is removed, and
more walks replace it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from synflow_pl.flow import linearise, magnitude
from synflow_pl.order_statistics import smallest
from synflow_pl.prunable_parameters import layer_weights
from synflow_pl.pruners.base import Pruner, PruningState
from synflow_pl.pruners.layer_graph import layer_graph
from synflow_pl.pruners.random_walks import WeightGraph

__all__ = ["PHEW"]

# Number of attempts without progress to replace weights that lie on no path.
_TRIES = 20


class PHEW(Pruner):
    """Keep the weights on random walks along large weights.

    It needs no data, only the shape of the input.

    Args:
        seed: Seed of the walks; ``None`` derives them from the global seed without advancing its
            generator.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import PHEW
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
        >>> prune(network, PHEW(seed=0), density=0.25, input_shape=(8,)).kept
        10
    """

    needs_input = True

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def prepare(self, state: PruningState) -> None:
        super().prepare(state)
        assert state.inputs is not None
        layers = layer_weights(state.network)
        if others := [name for name in state.weights if name not in layers]:
            raise ValueError(
                f"PHEW walks from unit to unit of linear, convolution and attention layers, and"
                f" {', '.join(others)} belongs to none; exclude it, or choose SynFlow"
            )
        self._linear_network = linear_network = linearise(state.network, state.inputs)
        self._layer_graph = layer_graph(
            linear_network, {name: parameter.detach() for name, parameter in layers.items()}
        )
        ones = {
            name: torch.ones_like(parameter, dtype=torch.float64)
            for name, parameter in layers.items()
        }
        self._usable = {
            name: gradient > 0
            for name, gradient in linear_network.gradients(ones, gains=False).items()
        }
        if state.scope == "local":
            self.notes = (
                "each layer is pruned alone, so not all that is kept need lie on a path; with scope"
                " global it does",
            )
        if idle := [
            name for name, usable in self._usable.items() if not usable.flatten(1).any(1).all()
        ]:
            raise ValueError(
                f"PHEW cannot walk to the output from every unit of {', '.join(idle)}; exclude"
                " them, or choose SynFlow"
            )

    def score(self, state: PruningState) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(
            torch.initial_seed() if self.seed is None else self.seed
        )
        magnitudes = {}
        for name, parameter in layer_weights(state.network).items():
            usable = (
                self._usable[name] & state.masks[name]
                if name in state.masks
                else self._usable[name]
            )
            magnitudes[name] = (magnitude(parameter) * usable).double().cpu()
            if not bool(magnitudes[name].isfinite().all()):
                raise FloatingPointError(
                    f"the weights of {name!r} are not finite, so no walk can choose by them; look"
                    " for what made them so"
                )
        graph = WeightGraph(self._layer_graph, magnitudes, list(state.weights))
        kept, tries = state.num_kept, 0
        chosen = torch.zeros_like(graph.counted)
        barred = torch.zeros_like(graph.counted)
        while tries < _TRIES:
            before = int(chosen.sum())
            chosen = graph.walk(chosen, kept, generator)
            ranks = graph.ranks(chosen, barred)
            keep = torch.ones_like(chosen).index_fill_(0, smallest(ranks, len(ranks) - kept), False)
            connected = keep & self._on_a_path(graph, state, keep)
            if int(connected.sum()) == kept:
                break
            barred |= keep & ~connected
            tries = tries + 1 if int(connected.sum()) <= before else 0
            chosen = connected
        return {name: rank.to(state.weights[name]) for name, rank in graph.parts(ranks).items()}

    def _on_a_path(self, graph: WeightGraph, state: PruningState, keep: Tensor) -> Tensor:
        """Return a mask (edges,) of the kept weights that lie on a path of kept weights.

        Args:
            graph: Graph of the weights.
            state: State of the pruning.
            keep: Mask (edges,) of the kept weights.
        """
        masks = {
            name: part.to(state.weights[name].device, torch.float64)
            for name, part in graph.parts(keep).items()
        }
        carried = self._linear_network.gradients(masks, gains=False)
        return torch.cat(
            [
                (carried[name] > 0).flatten().cpu() if name in carried else part.flatten()
                for name, part in graph.all(keep)
            ]
        )
