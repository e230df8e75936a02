"""Sanity checks of pruning at initialisation (Frankle et al. 2021, "Pruning neural networks at
initialization: why are we missing the mark?", Section 5), each around any pruner.

If a pruner's masks know something about single weights, training should suffer when the masks are
shuffled within their layers, when the weights under them are drawn anew, and more than either when
the scores are inverted. What does not suffer was a choice of layer densities. An inverted pruner
inverts in each of its rounds, among the weights that are left.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from synflow_pl.pruners.around import PrunerWrapper
from synflow_pl.pruners.base import Pruner, PruningState, Saliency

__all__ = ["SANITY", "Inverted", "Reinitialised", "Shuffled"]


class Inverted(PrunerWrapper):
    """Keeps in each round what the other pruner would have removed first.

    Args:
        pruner: gives the scores.
    """

    def score(self, subject: PruningState) -> Mapping[str, Tensor | Saliency]:
        return {
            name: Saliency(score.weight, -score.gradient) if isinstance(score, Saliency) else -score
            for name, score in super().score(subject).items()
        }


class _Drawing(PrunerWrapper):
    """One that draws at random.

    Args:
        pruner: gives the scores.
        seed: of what is drawn; ``None`` follows the global seed without drawing from it.
    """

    def __init__(self, pruner: Pruner, seed: int | None = None) -> None:
        super().__init__(pruner)
        self.seed = seed

    def _orders(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A random order of the entries of each tensor."""
        generator = torch.Generator().manual_seed(
            torch.initial_seed() if self.seed is None else self.seed
        )
        return {
            name: torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
            for name, tensor in tensors.items()
        }


class Shuffled(_Drawing):
    """Keeps as many weights of each layer as the other pruner, but at random places.

    Args:
        pruner: gives the scores.
        seed: of the places; ``None`` follows the global seed without drawing from it.
    """

    def finish(self, subject: PruningState) -> None:
        super().finish(subject)
        for name, order in self._orders(subject.masks).items():
            mask = subject.masks[name]
            mask.copy_(mask.flatten()[order].view_as(mask))


class Reinitialised(_Drawing):
    """Keeps the other pruner's masks, but under them the weights are drawn anew.

    A layer's weights are put in a random order, which for any initialisation of independent,
    identically distributed weights is a new
    draw from the same distribution, whatever that is: nothing need be known about how the network
    was initialised. It happens when the pruning is over, to the whole layers.

    Args:
        pruner: gives the scores.
        seed: of the new weights; ``None`` follows the global seed without drawing from it.
    """

    @torch.no_grad()
    def finish(self, subject: PruningState) -> None:
        super().finish(subject)
        for name, order in self._orders(subject.masks).items():
            parameter = subject.network.get_parameter(name)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


SANITY: dict[str, type[PrunerWrapper]] = {
    "invert": Inverted,
    "shuffle": Shuffled,
    "reinitialise": Reinitialised,
}
"""The checks by what they do."""
