"""SynFlow: iterative synaptic flow pruning (Tanaka et al. 2020, "Pruning neural networks without
any data by iteratively conserving synaptic flow", Algorithm 1).

Let R = 1^T f(1) be the output, summed, of the network's positive linear skeleton for an input of
ones: the total weight of all paths from input to output. A weight's score is its share of it,

    S(w) = |w| * dR/d|w|        (Equation 2)

the flow through that weight. Flow is conserved: what enters a hidden unit leaves it (Theorem 1),
and every cut between input and output carries all of it (Theorem 2). So a small layer's weights
score high, and if scores are taken anew after each small cut, the last weight of a layer, which
carries all the flow, is never the one to go.

Weights that no flow can pass by construction (queries, keys, what makes a gate, a head that eval
mode does not use) have no such score. Each tensor of them, or their rows in a fused one, is cut by
magnitude at the density of the whole.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synflow_pl.bias_norm_masks import living_units, of_units
from synflow_pl.flow import LinearNetwork, linearise
from synflow_pl.pruners.base import Pruner, PruningState, Saliency

__all__ = ["SynFlow"]

# Gradients of weights with so many entries are written where those of the round before were.
_LARGE = 1 << 16


class SynFlow(Pruner):
    """Keeps the weights that the most synaptic flow passes through; needs no data, only the input's
    shape.
    """

    rounds = 100
    needs_input = True

    def __init__(self) -> None:
        self._skeleton: LinearNetwork | None = None
        self._memory: dict[str, Tensor] = {}

    def prepare(self, subject: PruningState) -> None:
        assert subject.inputs is not None
        self._memory = {}
        followed = self.followed(subject.network)
        self._skeleton = skeleton = linearise(followed, subject.inputs)
        subject.skeleton = skeleton if followed is subject.network else None
        for name, weight in subject.weights.items():
            positive = self.positive(weight)
            if not positive.any():
                positive.fill_(
                    1
                )  # all zero at initialisation: counts as ones, or it would silence every score
            subject.weights[name] = positive.to(skeleton.dtype)
        subject.ranked_separately = self._without_flow(subject)
        subject.compressible = skeleton.compressible - subject.ranked_separately.keys()
        whole = [name for name, apart in subject.ranked_separately.items() if apart.all()]
        part = [name for name in subject.ranked_separately if name not in whole]
        self.notes = (
            *_note(
                "cut by magnitude, since no flow passes through them (queries, keys, gates, parts not used)",
                whole,
            ),
            *_note(
                "cut by magnitude in those rows that no flow passes through (queries, keys, gates)",
                part,
            ),
            *_note("zero throughout, so counted as ones", sorted(skeleton.all_zero)),
            *skeleton.notes,
        )

    def positive(self, weight: Tensor) -> Tensor:
        """What a weight counts as in the skeleton, non-negative; ``weight`` may be overwritten."""
        return weight.abs_()

    def followed(self, network: nn.Module) -> nn.Module:
        """The network whose skeleton the flow follows."""
        return network

    def score(self, subject: PruningState) -> dict[str, Saliency | Tensor]:
        assert self._skeleton is not None
        gradients = self._skeleton.gradients(
            self._flowing(subject), subject.blocks, into=self._memory
        )
        self._remember(gradients, subject)
        for name in subject.ranked_separately.keys() & gradients.keys():
            gradients[name].masked_fill_(
                subject.ranked_separately[name], 1
            )  # so that the score is the magnitude
        return {
            name: Saliency(weight, gradients[name]) if name in gradients else weight.clone()
            for name, weight in subject.weights.items()
        }

    def finish(self, subject: PruningState) -> None:
        self._skeleton, self._memory = None, {}

    def _remember(self, gradients: dict[str, Tensor], subject: PruningState) -> None:
        """Keep the memory of large gradients for the next round; where it was not taken in this
        one, it will not be.
        """
        if not self._memory:
            large = (name for name, gradient in gradients.items() if gradient.numel() >= _LARGE)
            self._memory = {name: gradients[name] for name in large if name in subject.compressible}
        else:
            taken = (
                name
                for name, memory in self._memory.items()
                if gradients[name].data_ptr() == memory.data_ptr()
            )
            self._memory = {name: self._memory[name] for name in taken}

    def _flowing(self, subject: PruningState) -> dict[str, Tensor]:
        assert self._skeleton is not None
        return {
            name: weight
            for name, weight in subject.weights.items()
            if name in self._skeleton.weights
        }

    def _without_flow(self, subject: PruningState) -> dict[str, Tensor]:
        """By name, True for the weights of units that flow cannot leave even where every weight
        lives.
        """
        assert self._skeleton is not None
        flowing = self._flowing(subject)
        apart = {
            name: torch.ones_like(mask)
            for name, mask in subject.masks.items()
            if name not in flowing
        }
        if self._skeleton.gated or self._skeleton.partial:
            ones = {name: torch.ones_like(weight) for name, weight in flowing.items()}
            reached = {
                name: gradient > 0
                for name, gradient in self._skeleton.gradients(ones, gains=False).items()
            }
            for name, living in living_units(subject.network, reached).items():
                if not living.all():
                    apart[name] = of_units(subject.network, name, ~living)
        return apart


def _note(what: str, names: list[str]) -> list[str]:
    return [f"{what}: {', '.join(names)}"] if names else []
