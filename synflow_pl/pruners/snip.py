"""SNIP: single-shot network pruning based on connection sensitivity (Lee et al. 2019).

Each weight has a mask entry c, which is 1 where the weight is kept. The sensitivity of the loss L
to an entry is

    dL/dc = w * dL/dw,        and the score its magnitude |w * dL/dw|        (Equations 4 and 5)

(the paper divides by the sum over all weights, which does not change the ranking). With scores
computed anew in each of many rounds it is iterative SNIP (de Jorge et al. 2021, "Progressive
skeletonization").
"""

from __future__ import annotations

from torch import Tensor

from synflow_pl.pruners.base import Pruner, PruningState
from synflow_pl.pruners.forward import loss_gradients

__all__ = ["SNIP"]


class SNIP(Pruner):
    """Keep the weights whose removal would change the loss the most.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import SNIP
        >>> batches = [(torch.randn(6, 8), torch.randint(0, 4, (6,)))]
        >>> prune(torch.nn.Linear(8, 4), SNIP(), density=0.25, batches=batches).kept
        8
    """

    needs_batches = True

    def score(self, state: PruningState) -> dict[str, Tensor]:
        gradients = loss_gradients(state, state.weights)
        return {
            name: gradient.mul_(state.weights[name]).abs_() for name, gradient in gradients.items()
        }
