"""Random pruning: the score is a uniform random number.

Within a layer every weight is equally likely to be kept. How many weights each layer keeps is
random too, or set by a sparsity distribution (:mod:`synflow_pl.pruners.sparsity_distributions`).
With a good distribution random pruning comes close to pruners with scores (Su et al. 2020,
"Sanity-checking pruning methods: random tickets can win the jackpot").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from synflow_pl.pruners.base import Pruner, PruningState
from synflow_pl.pruners.residual import is_residual
from synflow_pl.pruners.sparsity_distributions import Rule, weights_per_layer

__all__ = ["Random"]


class Random(Pruner):
    """Keep random weights: the baseline for every score.

    Args:
        seed: Seed of the scores; ``None`` derives them from the global seed (``--seed_everything``,
            ``torch.manual_seed``) without advancing its generator.
        quota: Rule for the number of weights that each layer keeps: ``"uniform"``,
            ``"uniform_plus"``, ``"er"``, ``"erk"``, ``"smart_ratio"`` or ``"igq"``; ``None`` leaves
            it to the random scores.
        residual: Whether ``"smart_ratio"`` uses its rule for residual networks (``True``) or that
            for other networks (``False``); ``None`` detects which one applies. Other rules have no
            such choice, and ``residual`` must be ``None``.

    Raises:
        ValueError: If the quota is unknown, or ``residual`` is given without
            ``quota="smart_ratio"``.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import Random
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
        >>> masks = prune(network, Random(seed=0, quota="uniform"), density=0.25)
        >>> [int(mask.sum()) for mask in masks.values()]
        [8, 2]
    """

    def __init__(
        self, seed: int | None = None, quota: Rule | None = None, residual: bool | None = None
    ) -> None:
        if quota is not None:
            weights_per_layer(quota, [(1, 1)], 1)
        if residual is not None and quota != "smart_ratio":
            raise ValueError(
                f"residual: {residual} chooses between the rules of quota='smart_ratio', and quota"
                f" is {quota!r}; leave it out"
            )
        self.quota = quota
        self.seed = seed
        self.residual = residual
        self._residual = residual

    def prepare(self, state: PruningState) -> None:
        super().prepare(state)
        if self.quota is not None and state.scope == "local":
            raise ValueError(
                f"quota={self.quota!r} and scope='local' both say how many weights each layer"
                " keeps; leave one of them out"
            )
        self._residual = self.residual
        if self.quota == "smart_ratio":
            if self._residual is None:
                self._residual = is_residual(state.network, state.inputs)
            kind = "residual" if self._residual else "other than residual"
            self.notes = (f"smart_ratio by its rule for {kind} networks",)

    def score(self, state: PruningState) -> dict[str, Tensor]:
        shapes = [weight.shape for weight in state.weights.values()]
        drawn = self.draw(shapes, state.masks.values(), state.num_kept)
        return {
            name: score.to(weight.device)
            for (name, weight), score in zip(state.weights.items(), drawn, strict=True)
        }

    def draw(
        self, shapes: Sequence[torch.Size], masks: Iterable[Tensor], num_kept: int
    ) -> Iterator[Tensor]:
        """Yield the scores of one layer after another, on the CPU.

        They are drawn there so that the masks do not depend on the device.

        Args:
            shapes: Shape of each layer's weight.
            masks: Mask of each layer, True where the weight is not pruned yet.
            num_kept: Number of weights kept in the end.
        """
        generator = torch.Generator().manual_seed(
            torch.initial_seed() if self.seed is None else self.seed
        )
        quotas = (
            weights_per_layer(self.quota, shapes, num_kept, residual=bool(self._residual))
            if self.quota is not None
            else [None] * len(shapes)
        )
        for shape, mask, quota in zip(shapes, masks, quotas, strict=True):
            score = torch.rand(shape, generator=generator)
            if quota is not None:
                # The largest scores of kept weights, as many as the quota allows, are raised above
                # all others.
                raised = score.masked_fill(~mask.cpu(), -1).flatten()
                raised[raised.topk(min(quota, int((raised >= 0).sum()))).indices] += 1
                score = raised.clamp_(min=0).view_as(score)
            yield score
