"""Random: the score is a uniform random number, so that every weight is as likely to survive as any other."""

from __future__ import annotations

import torch
from torch import Tensor

from synflow_pl.pruners.pruner import Pruner, Subject

__all__ = ["Random"]


class Random(Pruner):
    """Uniform random scores: the baseline that any score has to beat.

    Args:
        seed: of the scores; ``None`` follows the global seed (``--seed_everything``, ``torch.manual_seed``) without drawing from it.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def score(self, subject: Subject) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(torch.initial_seed() if self.seed is None else self.seed)
        # Drawn on the CPU, so that the masks do not depend on the device.
        return {name: torch.rand(weight.shape, generator=generator).to(weight.device) for name, weight in subject.weights.items()}
