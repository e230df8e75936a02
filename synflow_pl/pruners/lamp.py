"""LAMP: layer-adaptive magnitude-based pruning (Lee et al. 2021, "Layer-adaptive sparsity for the
magnitude-based pruning").

A weight's square, over the sum of the squares of all weights of its layer that are no smaller:

    S(w_u) = w_u^2 / sum of w_v^2 over all v with |w_v| >= |w_u|.

The last weight of a layer has the score 1, more than any other can have, so no layer dies before
every layer is down to one weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from synflow_pl.pruners.base import Pruner, PruningState

__all__ = ["LAMP"]


class LAMP(Pruner):
    """Keeps large weights, as compared with the weights of their own layer that would outlive
    them.
    """

    def score(self, subject: PruningState) -> dict[str, Tensor]:
        return {name: _score(weight) for name, weight in subject.weights.items()}


def _score(weight: Tensor) -> Tensor:
    # Summed in float64, from the largest down: in float32 the score of a layer's last weights would
    # be lost among millions.
    squares, order = weight.flatten().double().square().sort(descending=True, stable=True)
    shares = squares / squares.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.empty_like(shares).index_copy_(0, order, shares).view_as(weight).to(weight.dtype)
