"""Gradual magnitude pruning (Zhu & Gupta 2017, "To prune, or not to prune").

This method prunes during training and not at initialisation: the smallest weights are removed, many
at first and fewer later. After round i of n the density is

    d_i = d + (1 - d) (1 - i / n)^3

(Equation 1, written for densities, with nothing pruned at the start), and the weights kept recover
in the rest of the training. It is the upper reference to which pruning at initialisation is
compared.
"""

from __future__ import annotations

from synflow_pl.pruners.magnitude import Magnitude

__all__ = ["GradualMagnitude"]


class GradualMagnitude(Magnitude):
    """Keep the largest weights while they are trained.

    :class:`synflow_pl.PruneAtInit` spreads the rounds over the steps of the training.

    Args:
        end_fraction: Fraction of the training after which no weight is removed, in (0, 1].

    Raises:
        ValueError: If ``end_fraction`` is not in (0, 1].

    Example:
        >>> from synflow_pl.pruners import GradualMagnitude
        >>> GradualMagnitude(end_fraction=0.75).end_fraction
        0.75
    """

    rounds = 100
    schedule = "cubic"
    end_fraction: float | None = 0.5

    def __init__(self, end_fraction: float = 0.5) -> None:
        if not 0 < end_fraction <= 1:
            raise ValueError(
                f"end_fraction: {end_fraction} must be a fraction of the training, in (0, 1]"
            )
        self.end_fraction = end_fraction
