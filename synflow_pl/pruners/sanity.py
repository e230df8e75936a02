"""Sanity checks of pruning at initialisation, as wrappers around any pruner.

They are those of Frankle et al. 2021, "Pruning neural networks at initialization: why are we
missing the mark?", Section 5. If a pruner's masks carry information about single weights, accuracy
should suffer when the masks are shuffled within their layers, when the weights under them are
initialised anew, and most when the scores are inverted. If it does not, the pruner has chosen layer
densities only. An inverted pruner inverts the scores of each round among the weights still kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from synflow_pl.pruners.base import Pruner, PrunerWrapper, PruningState, Saliency

__all__ = ["SANITY", "Inverted", "Reinitialised", "Shuffled"]


class Inverted(PrunerWrapper):
    """Keep in each round the weights that another pruner would remove first.

    Args:
        pruner: Pruner whose scores are negated.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import Inverted, Magnitude
        >>> layer = torch.nn.Linear(3, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[3.0, -1.0, 2.0]])
        >>> prune(layer, Inverted(Magnitude()), num_kept=1)["weight"].tolist()
        [[False, True, False]]
    """

    def __init__(self, pruner: Pruner) -> None:
        super().__init__(pruner)
        self.scores_are_path_sums = False

    def score(self, state: PruningState) -> Mapping[str, Tensor | Saliency]:
        return {
            name: Saliency(score.weight, -score.gradient) if isinstance(score, Saliency) else -score
            for name, score in super().score(state).items()
        }


class _RandomWrapper(PrunerWrapper):
    """Base class of wrappers that draw random permutations.

    Args:
        pruner: Pruner to delegate to.
        seed: Seed of the permutations; ``None`` derives them from the global seed without advancing
            its generator.
    """

    def __init__(self, pruner: Pruner, seed: int | None = None) -> None:
        super().__init__(pruner)
        self.seed = seed

    def _permutations(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a random permutation of the entries of each tensor, by name."""
        generator = torch.Generator().manual_seed(
            torch.initial_seed() if self.seed is None else self.seed
        )
        return {
            name: torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
            for name, tensor in tensors.items()
        }


class Shuffled(_RandomWrapper):
    """Keep as many weights of each layer as another pruner, at random positions.

    Args:
        pruner: Pruner whose masks are shuffled within each layer.
        seed: Seed of the positions; ``None`` derives them from the global seed without advancing
            its generator.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import Magnitude, Shuffled
        >>> prune(torch.nn.Linear(8, 4), Shuffled(Magnitude(), seed=0), density=0.25).kept
        8
    """

    moves_masks = True

    def finish(self, state: PruningState) -> None:
        super().finish(state)
        for name, permutation in self._permutations(state.masks).items():
            mask = state.masks[name]
            mask.copy_(mask.flatten()[permutation].view_as(mask))


class Reinitialised(_RandomWrapper):
    """Keep the masks of another pruner, and initialise the weights under them anew.

    The weights of each layer are permuted at random, after the last round and over the whole layer.
    For any initialisation with independent, identically distributed weights this is a new draw
    from the same distribution, so the initialisation need not be known.

    Args:
        pruner: Pruner whose masks are kept.
        seed: Seed of the new weights; ``None`` derives them from the global seed without advancing
            its generator.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import Magnitude, Reinitialised
        >>> prune(torch.nn.Linear(8, 4), Reinitialised(Magnitude(), seed=0), density=0.25).kept
        8
    """

    @torch.no_grad()
    def finish(self, state: PruningState) -> None:
        super().finish(state)
        for name, permutation in self._permutations(state.masks).items():
            parameter = state.network.get_parameter(name)
            parameter.copy_(parameter.flatten()[permutation].view_as(parameter))


SANITY: dict[str, type[PrunerWrapper]] = {
    "invert": Inverted,
    "shuffle": Shuffled,
    "reinitialise": Reinitialised,
}
"""Classes of the sanity checks, by the value of the option ``sanity``."""
