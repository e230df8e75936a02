"""GRASP-It: iterative pruning by squared gradients, from the code of de Jorge et al. 2021.

The paper is "Progressive skeletonization: trimming more fat from a network at initialization". Its
code (``prune_method=2``) compares FORCE and iterative SNIP with a custom approximation of GraSP, in
as many rounds: in each round, with the gradient g of the loss of the pruned network,

    S(w) = g^2.

This is the share of the weight in the gradient norm g^T g, which GraSP preserves (Wang et al.
2020). The Hessian, by which removing a weight changes the gradients of the others, is left out, and
so is the weight itself. Removed weights do not come back.
"""

from __future__ import annotations

from torch import Tensor

from synflow_pl.pruners.base import Pruner, PruningState
from synflow_pl.pruners.forward import loss_gradients

__all__ = ["GRASPIt"]


class GRASPIt(Pruner):
    """Keep the weights with the largest squared gradients.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import GRASPIt
        >>> batches = [(torch.randn(6, 8), torch.randint(0, 4, (6,)))]
        >>> prune(torch.nn.Linear(8, 4), GRASPIt(), density=0.25, rounds=3, batches=batches).kept
        8
    """

    rounds = 60
    needs_batches = True

    def score(self, state: PruningState) -> dict[str, Tensor]:
        gradients = loss_gradients(state, state.weights)
        # A removed weight is not a parameter and adds nothing to the score of a group.
        return {
            name: gradient.square_().mul_(state.masks[name]) for name, gradient in gradients.items()
        }
