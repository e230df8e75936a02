"""Gradual magnitude pruning (Zhu & Gupta 2017, "To prune, or not to prune").

Not at initialisation: while the network trains, the smallest weights go, many at first and ever
fewer. After round i of n the density is

    d_i = d + (1 - d) (1 - i / n)^3        (Equation 1, with densities for sparsities and nothing
    pruned at the start)

and what stays has the rest of the training to recover. It is the upper reference that pruning at
initialisation is held against.
"""

from __future__ import annotations

from synflow_pl.pruners.magnitude import Magnitude

__all__ = ["GradualMagnitude"]


class GradualMagnitude(Magnitude):
    """Keeps the weights that are largest while they are trained; ``PruneAtInit`` spreads its rounds
    over the training's steps.

    Args:
        end_fraction: fraction of the training by whose end the last round is over, in (0, 1].

    Raises:
        ValueError: unless it is.
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
