"""FORCE: foresight connection sensitivity (de Jorge et al. 2021, "Progressive skeletonization:
trimming more fat from a network at initialization").

SNIP asks what the loss of the *dense* network says about a weight. Here the question is what the
loss of the *pruned* network says,
for every weight of the dense one: in each round, at the present masks c,

    S(w) = |w * dL/dw'|        at w' = c * w,

so a weight that was removed in one round can come back in a later one.
"""

from __future__ import annotations

from torch import Tensor

from synflow_pl.pruners.base import Pruner, PruningState
from synflow_pl.pruners.forward import loss_gradients, stateless_forward

__all__ = ["FORCE"]


class FORCE(Pruner):
    """Keeps the weights on which the loss of the pruned network would depend the most; may bring
    weights back.
    """

    rounds = 60
    needs_batches = True
    regrows = True

    def score(self, subject: PruningState) -> dict[str, Tensor]:
        pruned = {name: weight * subject.masks[name] for name, weight in subject.weights.items()}
        with stateless_forward(subject, train_mode=subject.train_mode) as forward:
            gradients = loss_gradients(subject, forward, pruned)
        return {
            name: gradient.mul_(subject.weights[name]).abs_()
            for name, gradient in gradients.items()
        }
