"""LAMP: layer-adaptive magnitude-based pruning (Lee et al. 2021).

The paper is "Layer-adaptive sparsity for the magnitude-based pruning". The score of a weight is its
square divided by the sum of the squares of all weights of its layer that are not smaller:

    S(w_u) = w_u^2 / sum of w_v^2 over all v with |w_v| >= |w_u|.

The largest weight of a layer has the score 1, more than any other weight can have, so no layer
loses all its weights before every layer is down to one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from synflow_pl.pruners.base import Pruner, PruningState

__all__ = ["LAMP"]


class LAMP(Pruner):
    """Keep weights that are large relative to the larger weights of their layer.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import LAMP
        >>> prune(torch.nn.Linear(8, 4), LAMP(), density=0.25).kept
        8
    """

    def score(self, state: PruningState) -> dict[str, Tensor]:
        return {name: _score(weight) for name, weight in state.weights.items()}


def _score(weight: Tensor) -> Tensor:
    # The sum is in float64, since in a layer of millions of weights the scores of small weights
    # would be lost in the rounding errors of float32.
    squares, order = weight.flatten().double().square().sort(descending=True, stable=True)
    shares = squares / squares.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.empty_like(shares).index_copy_(0, order, shares).view_as(weight).to(weight.dtype)
