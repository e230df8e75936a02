"""GraSP: gradient signal preservation (Wang et al. 2020, "Picking winning tickets before training by preserving gradient flow").

With g = dL/dw and the Hessian H of L, removing a weight changes the gradient flow g^T g by about -w * (Hg) (Equation 8). What keeps
the flow, or raises it, is to remove the weights of smallest w * Hg (twice the first-order change), so the score is

    S(w) = w * (Hg).

Logits are divided by a temperature, 200 as in the paper, in both passes, and both see the same batches.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from synflow_pl.pruners.passes import gradients_of, loss_gradients, mean_losses, passes
from synflow_pl.pruners.pruner import Pruner, Subject

__all__ = ["GraSP", "InvertedGraSP"]


class GraSP(Pruner):
    """Keeps the weights without which the gradient would flow less.

    Args:
        temperature: logits are divided by it, positive.
    """

    needs_batches = True

    def __init__(self, temperature: float = 200.0) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature: {temperature} must be positive; the paper uses 200")
        self.temperature = temperature

    def score(self, subject: Subject) -> dict[str, Tensor]:
        # Fused attention has no second derivative; written out it has.
        with sdpa_kernel(SDPBackend.MATH), passes(subject, train_mode=subject.train_mode) as forward:
            flow = loss_gradients(subject, forward, subject.weights, self.temperature)
            leaves = {name: weight.detach().requires_grad_() for name, weight in subject.weights.items()}
            products = {name: torch.zeros_like(weight) for name, weight in leaves.items()}
            for loss in mean_losses(subject, forward, leaves, self.temperature):
                gradients = gradients_of(loss, leaves, create_graph=True)
                along = torch.stack([(g * flow[name]).sum() for name, g in zip(leaves, gradients, strict=True)]).sum()
                for name, product in zip(leaves, gradients_of(along, leaves), strict=True):
                    products[name] += product
        return {name: product.mul_(subject.weights[name]) for name, product in products.items()}


class InvertedGraSP(GraSP):
    """Keeps the largest -w * Hg, as the comparison that Tanaka et al. 2020 published did by a slip of sign."""

    def score(self, subject: Subject) -> dict[str, Tensor]:
        return {name: score.neg_() for name, score in super().score(subject).items()}
