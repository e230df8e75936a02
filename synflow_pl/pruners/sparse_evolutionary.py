"""SET, sparse evolutionary training (Mocanu et al. 2018).

The paper is "Scalable training of artificial neural networks with adaptive sparse connectivity
inspired by network science". Every ``delta_t`` steps the smallest positive and the largest negative
weights are dropped in each layer, the same fraction of both, and as many random weights are grown,
from zero. The initial masks have Erdős-Rényi densities.

The paper updates the masks after each epoch but the last; here, as in the comparison of Evci et al.
2020, updates happen every ``delta_t`` steps until ``t_end``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from synflow_pl.pruners.base import Pruner
from synflow_pl.pruners.drop_and_grow import Anneal, DropAndGrow, GrowthState

__all__ = ["SET"]


class SET(DropAndGrow):
    """Train sparse from the start, and move the smallest weights to random places.

    The masks change during a training, so this pruner is for :class:`synflow_pl.PruneAtInit`;
    :func:`synflow_pl.prune` computes its initial masks only.

    Args:
        initial: Pruner of the initial masks; ``None`` draws them at random, with Erdős-Rényi
            densities of the layers, or with the same density in each layer under ``scope="local"``.
        drop_fraction: Fraction of the kept weights of a layer that an update drops, in (0, 1].
        delta_t: Number of optimiser steps from one update of the masks to the next, at least 1.
        t_end: Fraction of the training, in (0, 1], after which masks no longer change.
        anneal: ``"constant"``, or ``"cosine"`` to decay the drop fraction to zero at ``t_end``.
        seed: Seed of the growth; ``None`` derives it from the global seed when the initial masks
            are chosen. It does not affect the initial masks.
        by_sign: If true, as in the paper, the fraction is dropped of the negative weights and of
            the others apart; if false, of all together by magnitude, as Evci et al. 2020 do.

    Raises:
        ValueError: If an option is impossible, naming its value.

    Example:
        >>> from synflow_pl import PruneAtInit
        >>> from synflow_pl.pruners import SET
        >>> callback = PruneAtInit(SET(drop_fraction=0.3), density=0.1)
    """

    distribution = "er"
    resets_regrown = True

    def __init__(
        self,
        initial: Pruner | None = None,
        drop_fraction: float = 0.3,
        delta_t: int = 100,
        t_end: float = 0.75,
        anneal: Anneal = "constant",
        seed: int | None = None,
        by_sign: bool = True,
    ) -> None:
        super().__init__(initial, drop_fraction, delta_t, t_end, anneal)
        self.seed, self.by_sign = seed, by_sign

    def growth_scores(self, state: GrowthState) -> Mapping[str, Tensor]:
        # Scores are drawn on the CPU so that the masks do not depend on the device.
        return {
            name: torch.rand(weight.shape, generator=state.generator).to(weight.device)
            for name, weight in state.weights.items()
        }
