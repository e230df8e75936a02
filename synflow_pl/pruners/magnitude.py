"""Magnitude pruning: the score is |w|.

It is that of Han et al. 2015, "Learning both weights and connections for efficient neural
networks".
"""

from __future__ import annotations

from torch import Tensor

from synflow_pl.pruners.base import Pruner, PruningState

__all__ = ["Magnitude"]


class Magnitude(Pruner):
    """Keep the largest weights.

    At initialisation the magnitude says more about the scale of each layer than about single
    weights.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import Magnitude
        >>> layer = torch.nn.Linear(3, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[3.0, -1.0, 2.0]])
        >>> prune(layer, Magnitude(), num_kept=1)["weight"].tolist()
        [[True, False, False]]
    """

    def score(self, state: PruningState) -> dict[str, Tensor]:
        return {name: weight.abs() for name, weight in state.weights.items()}
