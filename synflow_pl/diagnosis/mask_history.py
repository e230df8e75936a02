"""Survival: how many rounds each weight lasted, so that it can be told afterwards in which round a
network died.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

import torch
from torch import Tensor

from synflow_pl.flow import Connectivity
from synflow_pl.masks import Masks

__all__ = ["MaskHistory"]

_MOST = 255  # of a byte


class MaskHistory:
    """Watches a pruning: ``prune(..., on_round=survival)``. A weight that was removed in a round
    stays removed, so the number of rounds that it survived tells the masks after every one of them.
    It does not for a pruner that regrows.

    Attributes:
        densities: after each round so far.
    """

    def __init__(self) -> None:
        self.densities: list[float] = []
        self._rounds: dict[str, Tensor] = {}

    def __call__(self, index: int, density: float, masks: Mapping[str, Tensor]) -> None:
        """Take note of a round: its number, counted from 1, the density after it and the masks,
        which are not kept.
        """
        self.densities.append(density)
        for name, mask in masks.items():
            if index == 1:
                self._rounds[name] = mask.to(torch.uint8)
            else:
                before = self._rounds[name]
                self._rounds[name] = (
                    before.to(torch.int32) if index == _MOST + 1 else before
                ).add_(mask)

    def after(self, index: int) -> Masks:
        """The masks after a round, counted from 1."""
        return Masks({name: survived >= index for name, survived in self._rounds.items()})

    def kept(self) -> dict[str, list[int]]:
        """By name, how many weights were left after each round."""
        rounds = len(self.densities)
        ended = {
            name: torch.bincount(survived.flatten(), minlength=rounds + 1)
            for name, survived in self._rounds.items()
        }
        return {
            name: (counts.sum() - counts.cumsum(0))[:rounds].tolist()
            for name, counts in ended.items()
        }

    def died(self, paths: Connectivity) -> tuple[int, float] | None:
        """The first round after which no path from input to output was left, and the density then;
        ``None`` if one is left after the last.

        Args:
            paths: of the network.
        """
        rounds = len(self.densities)
        if rounds == 0 or paths.is_connected(self.after(rounds)):
            return None
        before = bisect_left(
            range(1, rounds), True, key=lambda index: not paths.is_connected(self.after(index))
        )
        return before + 1, self.densities[before]
