"""Dynamic sparse training: masks that move while the network trains, at a constant density.

Every ``delta_t`` optimiser steps a fraction of the kept weights of each layer, those of smallest
magnitude, is dropped, and as many other weights are grown. The methods differ in the weights that
they grow: random ones (SET), or those with the largest gradients (RigL). The fraction at step t is

    f(t) = drop_fraction / 2 * (1 + cos(pi * t / T_end))

with ``anneal="cosine"`` (Evci et al. 2020, "Rigging the Lottery", Section 3), and ``drop_fraction``
with ``anneal="constant"``. Masks no longer change from step T_end on.

As in the papers and in the authors' code, a weight that has just been dropped may be grown again.
The number of dropped weights is rounded down in each layer.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from synflow_pl.order_statistics import smallest_of_many
from synflow_pl.pruners.base import Pruner, PrunerWrapper, PruningState
from synflow_pl.pruners.random import Random
from synflow_pl.pruners.sparsity_distributions import Rule

__all__ = ["Anneal", "DropAndGrow", "GrowthState", "drop_then_grow"]

Anneal = Literal["cosine", "constant"]


@dataclass
class GrowthState:
    """State of a network when weights are grown; what :meth:`DropAndGrow.growth_scores` reads.

    Attributes:
        weights: Weights of the layers that are updated, by parameter name; pruned weights are zero.
        masks: Bool masks of these layers before the update, by parameter name.
        generator: Generator on the CPU for random growth. It depends on the seed and the number of
            the update only.
        gradients: Magnitudes of the dense gradients of these weights; empty unless the method
            grows by gradient.
    """

    weights: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    generator: torch.Generator
    gradients: Mapping[str, Tensor] = field(default_factory=dict)


class DropAndGrow(PrunerWrapper):
    """Base class of dynamic sparse training methods: initial masks, schedule and growth scores.

    As a pruner it delegates to ``initial``, which chooses the masks with which training begins.
    :class:`synflow_pl.PruneAtInit` updates them during the training.

    Args:
        initial: Pruner of the initial masks; ``None`` draws them at random, with the densities of
            the layers by :attr:`distribution`, or with the same density in each layer under
            ``scope="local"``.
        drop_fraction: Fraction of the kept weights of a layer that the first update would drop at
            step 0, in (0, 1].
        delta_t: Number of optimiser steps between two updates of the masks.
        t_end: Fraction of the training, in (0, 1], after which masks no longer change.
        anneal: ``"cosine"`` to decay the drop fraction to zero at ``t_end``, or ``"constant"``.

    Raises:
        ValueError: If an option is impossible, naming its value.
    """

    end_fraction: float | None = 0.75
    distribution: Rule = "erk"
    """Sparsity distribution of random initial masks."""
    grows_by_gradient: bool = False
    """True if :meth:`growth_scores` reads gradients. The update then takes the place of an
    optimiser step, as in Algorithm 1 of Evci et al. 2020.
    """
    resets_regrown: bool = False
    """True if a weight that is dropped and grown again in one update starts from zero like other
    grown weights; otherwise nothing changes for it.
    """
    by_sign: bool = False
    """True if the drop fraction is applied to the positive and to the negative weights apart."""
    min_delta_t: int = 1
    """Smallest number of steps between two updates."""
    seed: int | None = None
    """Seed of random growth; ``None`` derives it from the global seed when the masks are chosen."""

    def __init__(
        self,
        initial: Pruner | None,
        drop_fraction: float,
        delta_t: int,
        t_end: float,
        anneal: Anneal,
    ) -> None:
        if initial is not None and initial.end_fraction is not None:
            raise ValueError(
                f"initial: {initial.name} prunes during training, and {self.name} starts from masks"
                " that are chosen before it; choose a pruner that prunes at once"
            )
        for name, value in (("drop_fraction", drop_fraction), ("t_end", t_end)):
            if not 0 < value <= 1:
                raise ValueError(f"{name}: {value} must be a fraction, in (0, 1]")
        if isinstance(delta_t, bool) or not isinstance(delta_t, int) or delta_t < self.min_delta_t:
            raise ValueError(
                f"delta_t: {delta_t!r} must be a whole number of optimiser steps, at least"
                f" {self.min_delta_t}"
            )
        if anneal not in ("cosine", "constant"):
            raise ValueError(f"anneal: {anneal!r} is not one of cosine, constant")
        super().__init__(initial or Random(quota=self.distribution))
        self.initial = initial
        self.drop_fraction, self.delta_t, self.anneal = drop_fraction, delta_t, anneal
        self.end_fraction = t_end

    def prepare(self, state: PruningState) -> None:
        if self.initial is None:
            self.pruner = Random(quota=None if state.scope == "local" else self.distribution)
        super().prepare(state)

    def fraction_at(self, position: float) -> float:
        """Return the fraction of the kept weights of each layer that an update drops.

        Args:
            position: Number of the step as a fraction of T_end, in [0, 1].

        Example:
            >>> from synflow_pl.pruners import RigL
            >>> [RigL(drop_fraction=0.3).fraction_at(x) for x in (0.0, 0.5, 1.0)]
            [0.3, 0.15, 0.0]
        """
        if self.anneal == "constant":
            return self.drop_fraction
        return self.drop_fraction / 2 * (1 + math.cos(math.pi * position))

    @abstractmethod
    def growth_scores(self, state: GrowthState) -> Mapping[str, Tensor]:
        """Return scores by parameter name; of the weights not kept, the largest are grown.

        Args:
            state: State of the network at the update.

        Returns:
            Finite scores in the shapes of ``state.weights``.
        """


def drop_then_grow(
    weight: Tensor, mask: Tensor, growth: Tensor, fraction: float, by_sign: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the mask of a layer after an update, with as many kept weights as before.

    The kept weights of smallest magnitude are dropped, then the weights with the largest growth
    scores are grown among all that are not kept, the dropped ones included. Ties are broken by
    position: of equal values the first is kept or grown.

    Args:
        weight: Weight of the layer, finite.
        mask: Bool mask of the layer, in the weight's shape.
        growth: Growth scores in the weight's shape, finite.
        fraction: Fraction of the kept weights that is dropped, in [0, 1]; the number is rounded
            down.
        by_sign: If true, the fraction is dropped of the negative weights and of the others apart,
            each rounded down.

    Returns:
        Mask after the update, and a bool tensor that is True where a weight was grown, both in the
        weight's shape. A weight that was dropped and grown again is part of both.

    Example:
        >>> weight = torch.tensor([0.1, -3.0, 2.0, 0.0, 0.0])
        >>> mask = torch.tensor([True, True, True, False, False])
        >>> growth = torch.tensor([1.0, 9.0, 9.0, 2.0, 5.0])
        >>> [x.tolist() for x in drop_then_grow(weight, mask, growth, 0.4)]
        [[False, True, True, False, True], [False, False, False, False, True]]
    """
    kept = mask.flatten()
    magnitudes, scores = (_comparable(x.detach()).flatten() for x in (weight.abs(), growth))
    negative = weight.detach().flatten() < 0
    remaining = kept
    for candidates in (kept & negative, kept & ~negative) if by_sign else (kept,):
        num_candidates = int(candidates.count_nonzero())
        # The product of a decimal fraction and a whole number may lie just below a whole number.
        count = min(math.floor(num_candidates * fraction + 1e-9), num_candidates)
        (dropped,) = smallest_of_many([magnitudes], [candidates], num_candidates, count)
        remaining = remaining.index_fill(0, dropped, False)
    count = int((kept ^ remaining).count_nonzero())
    others = int((~remaining).count_nonzero())
    (left,) = smallest_of_many([scores], [~remaining], others, others - count)
    grown = (~remaining).index_fill(0, left, False)
    return (remaining | grown).view_as(mask), grown.view_as(mask)


def _comparable(values: Tensor) -> Tensor:
    """Return values in a type that can be ranked on any device."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
