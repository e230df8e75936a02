"""Groups of weights that are kept or removed together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from synflow_pl.structure.costs import Costs

__all__ = ["Groups", "as_rankings", "total_cost"]


class Groups(ABC):
    """Groups of weights, numbered from 0.

    Attributes:
        rankings: Numbers of the groups that compete with each other, one int64 tensor each. Each
            ranking loses the same fraction of its cost.
        sizes: Number of weights of each group before the first round, (groups,) float64.
        costs: Cost of each group by itself, (groups,) float64, for comparing progress.
        flowing: Bool tensor (groups,), True for groups whose scores are comparable to those of all
            others; the rest is ranked by itself.
        notes: Remarks about weights that are in no group, one sentence each.
        pattern: N and M if N of every M weights are kept, else ``None``.
        unscored: What becomes of parameters without scores, for a note, if they need not stay
            dense.
    """

    rankings: list[Tensor]
    sizes: Tensor
    costs: Tensor
    flowing: Tensor
    notes: tuple[str, ...] = ()
    pattern: tuple[int, int] | None = None
    unscored: str | None = None

    @property
    def initially_active(self) -> Tensor:
        """Return which groups have weights before the first round, (groups,) bool."""
        return self.sizes > 0

    @abstractmethod
    def sums(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the scores of each group's kept weights, (groups,) float64.

        Args:
            scores: Scores by parameter name, in the shapes of the weights.
        """

    @abstractmethod
    def masks(self, active: Tensor) -> dict[str, Tensor]:
        """Return the masks of the weights that have groups, by name.

        Args:
            active: Bool tensor (groups,), True for groups that are kept.
        """

    @abstractmethod
    def cost(self, active: Tensor) -> float:
        """Return the cost of the network with some groups kept.

        Args:
            active: Bool tensor (groups,), True for groups that are kept.
        """

    def removable(self, scores: Tensor, active: Tensor) -> Tensor:
        """Return which groups may be removed now, (groups,) bool.

        Args:
            scores: Scores of the groups.
            active: Bool tensor (groups,), True for groups that are kept.
        """
        return active

    def order(self, scores: Tensor, active: Tensor, group_score: str = "sum") -> Tensor:
        """Return the numbers of the removable groups in the order in which they are removed.

        Rankings take turns, so that each has lost about the same fraction of its cost at any place.

        Args:
            scores: Scores of the groups.
            active: Bool tensor (groups,), True for groups that are kept.
            group_score: ``"sum"``, ``"mean"`` or ``"per_cost"``, as in :func:`synflow_pl.prune`.
        """
        may_go, costs = self.removable(scores, active), self.costs
        if group_score != "sum":
            sizes = self.sizes if group_score == "mean" else costs
            scores = scores / sizes.clamp(min=1e-300)
        ordered, progress = [], []
        for numbers in self.rankings:
            left = numbers[may_go[numbers]]
            left = left[scores[left].sort(stable=True).indices]
            ordered.append(left)
            whole = float(costs[numbers].sum())
            before = float(costs[numbers[~active[numbers]]].sum())
            progress.append((before + costs[left].cumsum(0)) / max(whole, 1e-300))
        if len(ordered) == 1:
            return ordered[0]
        return torch.cat(ordered)[torch.cat(progress).sort(stable=True).indices]

    def number_within(self, order: Tensor, active: Tensor, budget: float) -> int:
        """Return how many groups have to be removed until the cost is within a budget.

        Args:
            order: Numbers of groups in the order in which they are removed.
            active: Bool tensor (groups,), True for groups that are kept.
            budget: Largest cost.

        Returns:
            The smallest such number; ``len(order)`` if the cost is larger even without all of them.
        """
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            without = active.clone()
            without[order[:middle]] = False
            if self.cost(without) > budget:
                low = middle + 1
            else:
                high = middle
        return low


def as_rankings(flowing: Tensor, families: Sequence[Tensor], scope: str) -> list[Tensor]:
    """Return the rankings of groups.

    Args:
        flowing: Bool tensor (groups,), as in :class:`Groups`.
        families: Numbers of the groups of each layer.
        scope: ``"global"`` or ``"local"``.
    """
    together = [numbers[flowing[numbers]] for numbers in families]
    apart = [numbers[~flowing[numbers]] for numbers in families]
    if scope == "global" and together:
        together = [torch.cat(together)]
    return [numbers for numbers in (*together, *apart) if len(numbers)]


def total_cost(costs: Costs, kept: Mapping[str, float], others: float) -> float:
    """Return the cost of kept weights and other parameters."""
    return costs.constant + others + sum(costs.of_weight[name] * n for name, n in kept.items())
