"""SynFlow: iterative synaptic flow pruning (Tanaka et al. 2020, Algorithm 1).

The paper is "Pruning neural networks without any data by iteratively conserving synaptic flow". Let
R = 1^T f(1) be the sum of the outputs of the network's positive linear network for an input of
ones, which is the sum over all paths from input to output of the product of the weights on the
path. The score of a weight is its share of R,

    S(w) = |w| * dR/d|w|        (Equation 2),

the flow through that weight. Flow is conserved: the flow into a hidden unit equals the flow out of
it (Theorem 1), and every cut between input and output carries all of it (Theorem 2). A weight of a
small layer therefore has a high score, and if scores are computed anew after each small step, the
last weight of a layer, which carries all the flow, is never removed first (Theorem 3).

Weights that no flow can pass by construction (queries, keys, inputs of a gate, a head that is not
used in eval mode) have no such score. Each tensor of them, or their rows in a fused tensor, is
pruned by magnitude at the density of the whole network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synflow_pl.bias_norm_masks import active_units, expand_units, has_units
from synflow_pl.flow import LinearNetwork, linearise
from synflow_pl.pruners.base import Pruner, PruningState, Saliency

__all__ = ["SynFlow"]


class SynFlow(Pruner):
    """Keep the weights with the most synaptic flow through them.

    It needs no data, only the shape of the input.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import SynFlow
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
        >>> prune(network, SynFlow(), density=0.25, rounds=10, input_shape=(8,)).kept
        10
    """

    rounds = 100
    needs_input = True
    scores_are_path_sums = True

    def __init__(self) -> None:
        self._linear_network: LinearNetwork | None = None

    def prepare(self, state: PruningState) -> None:
        assert state.inputs is not None
        scored_network = self.scored_network(state.network)
        self._linear_network = linear_network = linearise(scored_network, state.inputs)
        state.linear_network = linear_network if scored_network is state.network else None
        if self.scores_are_path_sums:
            state.scored_network = linear_network
        for name, weight in state.weights.items():
            positive = self.positive_weight(weight)
            # Zeros at initialisation count as ones, since they would make every score zero.
            if not positive.any():
                positive.fill_(1)
            state.weights[name] = positive.to(linear_network.dtype)
        state.ranked_separately = self._without_flow(state)
        state.compressible = linear_network.compressible - state.ranked_separately.keys()
        whole = [name for name, separate in state.ranked_separately.items() if separate.all()]
        part = [name for name in state.ranked_separately if name not in whole]
        self.notes = (
            *_note(
                "pruned by magnitude, since no flow passes through them"
                " (queries, keys, gates, parts not used)",
                whole,
            ),
            *_note(
                "pruned by magnitude in those rows that no flow passes through"
                " (queries, keys, gates)",
                part,
            ),
            *_note("zero throughout, so counted as ones", sorted(linear_network.all_zero)),
            *linear_network.notes,
        )

    def positive_weight(self, weight: Tensor) -> Tensor:
        """Return the non-negative value of a weight in the positive linear network.

        Args:
            weight: Working copy of the weight, which may be overwritten.
        """
        return weight.abs_()

    def scored_network(self, network: nn.Module) -> nn.Module:
        """Return the network whose positive linear network is scored.

        Args:
            network: Network under study.
        """
        return network

    def flow_and_gradients(self, state: PruningState) -> tuple[Tensor, dict[str, Tensor]]:
        """Return R and dR/d|w| for each weight that flow passes, up to one power of two.

        Args:
            state: State of the pruning.
        """
        assert self._linear_network is not None
        return self._linear_network.flow_and_gradients(self._flowing(state), state.blocks)

    def score(self, state: PruningState) -> dict[str, Saliency | Tensor]:
        total_flow, gradients = self.flow_and_gradients(state)
        if self.scores_are_path_sums:
            state.total_flow = total_flow
        for name in state.ranked_separately.keys() & gradients.keys():
            # With a gradient of one the score is the magnitude.
            gradients[name].masked_fill_(state.ranked_separately[name], 1)
        return {
            name: Saliency(weight, gradients[name]) if name in gradients else weight.clone()
            for name, weight in state.weights.items()
        }

    def finish(self, state: PruningState) -> None:
        self._linear_network = None

    def _flowing(self, state: PruningState) -> dict[str, Tensor]:
        """Return the working copies of the weights in the positive linear network, by name."""
        assert self._linear_network is not None
        return {
            name: weight
            for name, weight in state.weights.items()
            if name in self._linear_network.weights
        }

    def _without_flow(self, state: PruningState) -> dict[str, Tensor]:
        """Return masks, by name, of the weights into units whose flow cannot reach the output.

        The masks are those of the dense network.
        """
        assert self._linear_network is not None
        flowing = self._flowing(state)
        separate = {
            name: torch.ones_like(mask) for name, mask in state.masks.items() if name not in flowing
        }
        if self._linear_network.gated or self._linear_network.partial:
            ones = {name: torch.ones_like(weight) for name, weight in flowing.items()}
            reached = {
                name: gradient > 0
                for name, gradient in self._linear_network.gradients(ones, gains=False).items()
            }
            with_units = {name: x for name, x in reached.items() if has_units(state.network, name)}
            for name, active in active_units(state.network, with_units).items():
                if not active.all():
                    separate[name] = expand_units(state.network, name, ~active)
            for name in reached.keys() - with_units.keys():
                if not reached[name].all():
                    separate[name] = ~reached[name]
        return separate


def _note(text: str, names: list[str]) -> list[str]:
    return [f"{text}: {', '.join(names)}"] if names else []
