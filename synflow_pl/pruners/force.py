"""FORCE: foresight connection sensitivity (de Jorge et al. 2021).

The paper is "Progressive skeletonization: trimming more fat from a network at initialization". SNIP
scores a weight by the loss of the *dense* network. FORCE scores every weight of the dense network
by the loss of the *pruned* network: in each round, with the present masks c,

    S(w) = |w * dL/dw'|        at w' = c * w        (Equation 6),

so a weight that is removed in one round can come back in a later one.
"""

from __future__ import annotations

from torch import Tensor

from synflow_pl.pruners.base import Pruner, PruningState
from synflow_pl.pruners.forward import loss_gradients

__all__ = ["FORCE"]


class FORCE(Pruner):
    """Keep the weights on which the loss of the pruned network would depend the most.

    Removed weights may come back in later rounds.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import FORCE
        >>> batches = [(torch.randn(6, 8), torch.randint(0, 4, (6,)))]
        >>> prune(torch.nn.Linear(8, 4), FORCE(), density=0.25, rounds=3, batches=batches).kept
        8
    """

    rounds = 60
    needs_batches = True
    regrows = True

    def score(self, state: PruningState) -> dict[str, Tensor]:
        pruned = {name: weight * state.masks[name] for name, weight in state.weights.items()}
        gradients = loss_gradients(state, pruned)
        return {
            name: gradient.mul_(state.weights[name]).abs_() for name, gradient in gradients.items()
        }
