"""Total scores of layers, which conservation makes equal (Tanaka et al. 2020, Theorem 2, Figure 4).

Where a conserved score flows through layers in sequence, each layer has the same total, so the
average score of its weights is inversely proportional to their number: small layers have high
scores. Layers in parallel, such as shortcuts and branches, share the flow and have lower totals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LayerScore", "largest_difference", "layer_scores", "variation"]


@dataclass(frozen=True)
class LayerScore:
    """Total score of one layer.

    Attributes:
        layer: Name of the layer's weight.
        size: Number of weights.
        total: Sum of the scores, signed if the scores are.
    """

    layer: str
    size: int
    total: float

    @property
    def average(self) -> float:
        """Average score of a weight of the layer."""
        return self.total / self.size


def layer_scores(scores: Mapping[str, Tensor]) -> list[LayerScore]:
    """Return the total score of each layer, computed in float64.

    Args:
        scores: Scores of each layer, by the name of its weight.
    """
    return [
        LayerScore(name, score.numel(), float(score.sum(dtype=torch.float64)))
        for name, score in scores.items()
    ]


def variation(totals: list[float]) -> float:
    """Return the coefficient of variation of the layers' totals.

    This is the sample standard deviation (divisor n - 1) over the magnitude of the mean; 0 if all
    totals are equal.

    Args:
        totals: Total score of each layer.

    Raises:
        ValueError: If there are fewer than two layers.
    """
    if len(totals) < 2:
        raise ValueError(f"a coefficient of variation needs two layers or more, got {len(totals)}")
    values = torch.tensor(totals, dtype=torch.float64)
    return float(values.std() / values.mean().abs())


def largest_difference(totals: list[float]) -> float:
    """Return the largest deviation of a layer's total from the mean, relative to the mean.

    Args:
        totals: Total score of each layer.
    """
    values = torch.tensor(totals, dtype=torch.float64)
    return float((values / values.mean() - 1).abs().max())
