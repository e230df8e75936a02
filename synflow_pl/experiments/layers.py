"""Layers: every layer has the same total, so small ones score high (Tanaka et al. 2020, Theorem 2
and Figure 4).

Where a conserved score flows through one layer after another, each has the same total, and the
average score of its weights is in
inverse proportion to their number. Shortcuts and branches share the flow with the layers beside
    them: those have less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LayerScore", "largest_difference", "layer_scores", "variation"]


@dataclass(frozen=True)
class LayerScore:
    """Of one layer: the name of its weight, how many weights there are, and the sum of their
    scores, signed where scores are.
    """

    layer: str
    size: int
    total: float

    @property
    def average(self) -> float:
        """The average score of a weight."""
        return self.total / self.size


def layer_scores(scores: Mapping[str, Tensor]) -> list[LayerScore]:
    """The sum of the scores of each layer, in float64.

    Args:
        scores: by the name of the weight.
    """
    return [
        LayerScore(name, score.numel(), float(score.sum(dtype=torch.float64)))
        for name, score in scores.items()
    ]


def variation(totals: list[float]) -> float:
    """Coefficient of variation of the layers' totals: sample deviation (n - 1) over the magnitude
    of the mean; 0 where all agree.

    Raises:
        ValueError: for fewer than two layers.
    """
    if len(totals) < 2:
        raise ValueError(f"a coefficient of variation needs two layers or more, got {len(totals)}")
    values = torch.tensor(totals, dtype=torch.float64)
    return float(values.std() / values.mean().abs())


def largest_difference(totals: list[float]) -> float:
    """How far the layers' totals are from their mean, at most, in units of it."""
    values = torch.tensor(totals, dtype=torch.float64)
    return float((values / values.mean() - 1).abs().max())
