"""SNIP: single-shot network pruning based on connection sensitivity (Lee et al. 2019).

Give each weight a mask entry c, 1 where it lives. How much the loss L depends on an entry is

    dL/dc = w * dL/dw,        scored by its magnitude |w * dL/dw|        (Equations 4 and 5)

(the paper divides by the sum of all, which changes no ranking). Taken anew after each of many small
cuts it is iterative SNIP (de Jorge et al. 2021, "Progressive skeletonization").
"""

from __future__ import annotations

from torch import Tensor

from synflow_pl.pruners.base import Pruner, PruningState
from synflow_pl.pruners.forward import loss_gradients, stateless_forward

__all__ = ["SNIP"]


class SNIP(Pruner):
    """Keeps the weights on whose presence the loss depends the most."""

    needs_batches = True

    def score(self, subject: PruningState) -> dict[str, Tensor]:
        with stateless_forward(subject, train_mode=subject.train_mode) as forward:
            gradients = loss_gradients(subject, forward, subject.weights)
        return {
            name: gradient.mul_(subject.weights[name]).abs_()
            for name, gradient in gradients.items()
        }
