"""Random: the score is a uniform random number, so that within a layer every weight is as likely to
survive as any other.

How many weights each layer keeps is left to chance, or set by a quota
(:mod:`synflow_pl.pruners.sparsity_distributions`). With a good quota random pruning comes close to
what scores achieve (Su et al. 2020, "Sanity-checking pruning methods: random tickets can win the
jackpot").
"""

from __future__ import annotations

import torch
from torch import Tensor

from synflow_pl.pruners.base import Pruner, PruningState
from synflow_pl.pruners.residual import is_residual
from synflow_pl.pruners.sparsity_distributions import Rule, weights_per_layer

__all__ = ["Random"]


class Random(Pruner):
    """Uniform random scores: the baseline that any score has to beat.

    Args:
        seed: of the scores; ``None`` follows the global seed (``--seed_everything``,
            ``torch.manual_seed``) without drawing from it.
        quota: what decides how many weights each layer keeps: uniform, er, erk, smart_ratio or igq;
            ``None`` leaves it to chance.
        residual: whether smart_ratio takes its rule for residual networks (``True``) or that for
            all others (``False``); ``None`` takes the one for what the network is. Other quotas
            have one rule, and this must be ``None``.

    Raises:
        ValueError: for an unknown quota, or if ``residual`` is given without
            ``quota="smart_ratio"``.
    """

    def __init__(
        self, seed: int | None = None, quota: Rule | None = None, residual: bool | None = None
    ) -> None:
        if quota is not None:
            weights_per_layer(quota, [(1, 1)], 1)
        if residual is not None and quota != "smart_ratio":
            raise ValueError(
                f"residual: {residual} chooses between the rules of quota='smart_ratio', and quota is {quota!r}; leave it out"
            )
        self.quota = quota
        self.seed = seed
        self.residual = residual

    def prepare(self, subject: PruningState) -> None:
        super().prepare(subject)
        if self.quota is not None and subject.scope == "local":
            raise ValueError(
                f"quota={self.quota!r} and scope='local' both say how many weights each layer keeps; leave one of them out"
            )
        self._residual = self.residual
        if self.quota == "smart_ratio":
            if self._residual is None:
                self._residual = is_residual(subject.network, subject.inputs)
            self.notes = (
                f"smart_ratio by its rule for {'residual' if self._residual else 'other than residual'} networks",
            )

    def score(self, subject: PruningState) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(
            torch.initial_seed() if self.seed is None else self.seed
        )
        # Drawn on the CPU, so that the masks do not depend on the device.
        drawn = {
            name: torch.rand(weight.shape, generator=generator)
            for name, weight in subject.weights.items()
        }
        if self.quota is not None:
            shapes = [weight.shape for weight in subject.weights.values()]
            kept = weights_per_layer(
                self.quota, shapes, subject.kept, residual=bool(self._residual)
            )
            for (name, score), quota in zip(drawn.items(), kept, strict=True):
                # In the first rank what the quota has room for: of those that live, the largest.
                alive = score.masked_fill(~subject.masks[name].cpu(), -1).flatten()
                alive[alive.topk(min(quota, int((alive >= 0).sum()))).indices] += 1
                drawn[name] = alive.clamp_(min=0).view_as(score)
        return {name: score.to(subject.weights[name].device) for name, score in drawn.items()}
