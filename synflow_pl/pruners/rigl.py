"""RigL (Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners").

Every ``delta_t`` steps the kept weights of smallest magnitude are dropped in each layer, and the
weights with the largest gradient of the loss are grown, from zero:

    drop: the k smallest |w| of the kept weights,    grow: the k largest |dL/dw| of all others

(Algorithm 1). The gradient is that of the batch of the update, for all weights of the layer,
computed on the sparse network. The update takes the place of an optimiser step. A dropped weight
that is grown again keeps its value and momentum, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from synflow_pl.pruners.base import Pruner
from synflow_pl.pruners.drop_and_grow import Anneal, DropAndGrow, GrowthState

__all__ = ["RigL"]


class RigL(DropAndGrow):
    """Train sparse from the start, and move weights to where the gradient is largest.

    The masks change during a training, so this pruner is for :class:`synflow_pl.PruneAtInit`;
    :func:`synflow_pl.prune` computes its initial masks only.

    Args:
        initial: Pruner of the initial masks; ``None`` draws them at random, with Erdős-Rényi-kernel
            densities of the layers, or with the same density in each layer under ``scope="local"``.
        drop_fraction: Fraction of the kept weights of a layer that the cosine decays from, in
            (0, 1].
        delta_t: Number of optimiser steps from one update of the masks to the next, at least 2.
        t_end: Fraction of the training, in (0, 1], after which masks no longer change.
        anneal: ``"cosine"`` to decay the drop fraction to zero at ``t_end``, or ``"constant"``.

    Raises:
        ValueError: If an option is impossible, naming its value.

    Example:
        >>> from synflow_pl import PruneAtInit
        >>> from synflow_pl.pruners import RigL
        >>> callback = PruneAtInit(RigL(delta_t=100, t_end=0.75), density=0.1)
    """

    grows_by_gradient = True
    # Each update replaces an optimiser step, so that with 1 nothing would be trained before t_end.
    min_delta_t = 2

    def __init__(
        self,
        initial: Pruner | None = None,
        drop_fraction: float = 0.3,
        delta_t: int = 100,
        t_end: float = 0.75,
        anneal: Anneal = "cosine",
    ) -> None:
        super().__init__(initial, drop_fraction, delta_t, t_end, anneal)

    def growth_scores(self, state: GrowthState) -> Mapping[str, Tensor]:
        return state.gradients
