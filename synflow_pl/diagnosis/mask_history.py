"""The masks after each round of pruning, stored as the number of rounds each weight survived."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

import torch
from torch import Tensor

from synflow_pl.flow import Connectivity
from synflow_pl.masks import Masks

__all__ = ["MaskHistory"]

_UINT8_MAX = 255


class MaskHistory:
    """Record the masks after each round of pruning: ``prune(..., on_round=MaskHistory())``.

    A pruned weight stays pruned, so the number of rounds that each weight survived determines the
    masks after every round. This does not hold for a pruner that regrows weights.

    Attributes:
        densities: Density after each round so far.

    Example:
        >>> import torch
        >>> from synflow_pl.diagnosis import MaskHistory
        >>> history = MaskHistory()
        >>> history(1, 0.75, {"weight": torch.tensor([True, True, True, False])})
        >>> history(2, 0.25, {"weight": torch.tensor([True, False, False, False])})
        >>> history.kept()
        {'weight': [3, 1]}
        >>> history.after(1)["weight"]
        tensor([ True,  True,  True, False])
    """

    def __init__(self) -> None:
        self.densities: list[float] = []
        self._rounds: dict[str, Tensor] = {}

    def __call__(self, index: int, density: float, masks: Mapping[str, Tensor]) -> None:
        """Record a round.

        Args:
            index: Number of the round, counted from 1.
            density: Density after the round.
            masks: Masks after the round, by parameter name; they are not stored.
        """
        self.densities.append(density)
        for name, mask in masks.items():
            if index == 1:
                self._rounds[name] = mask.to(torch.uint8)
            else:
                before = self._rounds[name]
                self._rounds[name] = (
                    before.to(torch.int32) if index == _UINT8_MAX + 1 else before
                ).add_(mask)

    def after(self, index: int) -> Masks:
        """Return the masks after round ``index``, counted from 1."""
        return Masks({name: survived >= index for name, survived in self._rounds.items()})

    def kept(self) -> dict[str, list[int]]:
        """Return the number of kept weights after each round, by parameter name."""
        rounds = len(self.densities)
        survivals = {
            name: torch.bincount(survived.flatten(), minlength=rounds + 1)
            for name, survived in self._rounds.items()
        }
        return {
            name: (counts.sum() - counts.cumsum(0))[:rounds].tolist()
            for name, counts in survivals.items()
        }

    def died(self, paths: Connectivity) -> tuple[int, float] | None:
        """Return the first round after which the network was disconnected.

        Args:
            paths: Connectivity of the network.

        Returns:
            The round and the density after it; ``None`` if the network is connected after the last
            round.
        """
        rounds = len(self.densities)
        if rounds == 0 or paths.is_connected(self.after(rounds)):
            return None
        before = bisect_left(
            range(1, rounds), True, key=lambda index: not paths.is_connected(self.after(index))
        )
        return before + 1, self.densities[before]
