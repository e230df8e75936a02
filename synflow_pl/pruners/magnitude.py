"""Magnitude: the score is |w|, as in Han et al. 2015, "Learning both weights and connections for efficient neural networks"."""

from __future__ import annotations

from torch import Tensor

from synflow_pl.pruners.base import Pruner, PruningState

__all__ = ["Magnitude"]


class Magnitude(Pruner):
    """Keeps the largest weights. At initialisation that says more about each layer's scale than
    about the weights.
    """

    def score(self, subject: PruningState) -> dict[str, Tensor]:
        return {name: weight.abs() for name, weight in subject.weights.items()}
