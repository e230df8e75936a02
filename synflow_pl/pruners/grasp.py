"""GraSP: gradient signal preservation (Wang et al. 2020, "Picking winning tickets before training
by preserving gradient flow").

With g = dL/dw and the Hessian H of L, removing a weight changes the gradient flow g^T g by about -w
* (Hg) (Equation 8). What keeps the flow, or raises it, is to remove the weights of smallest w * Hg
(twice the first-order change), so the score is

    S(w) = w * (Hg).

In a network that is pruned already a removed weight is no parameter: with masks c the loss is a
function of the kept weights alone, so both g and H are those of L(c * w), g^T g sums over kept
weights only, and

    S(w) = w * c * (H (c * g)).

Logits are divided by a temperature, 200 as in the paper, in both passes, and both see the same
batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from synflow_pl.pruners.base import Pruner, PruningState
from synflow_pl.pruners.forward import gradients_of, mean_losses, stateless_forward

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

    def score(self, subject: PruningState) -> dict[str, Tensor]:
        # Fused attention has no second derivative; written out it has.
        with (
            sdpa_kernel(SDPBackend.MATH),
            stateless_forward(subject, train_mode=subject.train_mode) as forward,
        ):
            leaves = {
                name: weight.detach().requires_grad_() for name, weight in subject.weights.items()
            }
            flow = {name: torch.zeros_like(weight) for name, weight in leaves.items()}
            products = {name: torch.zeros_like(weight) for name, weight in leaves.items()}
            gradients: tuple[Tensor, ...] = ()
            before_last = len(subject.batches) - 1
            for index, loss in enumerate(mean_losses(subject, forward, leaves, self.temperature)):
                gradients = gradients_of(loss, leaves, create_graph=index == before_last)
                for name, gradient in zip(leaves, gradients, strict=True):
                    flow[name] += gradient.detach()
            for name, total in flow.items():
                total.masked_fill_(~subject.masks[name], 0)  # a removed weight has no gradient
            # The last batch's graph is there still; the others' would take too much memory, and are
            # made again.
            _add_products(products, gradients, flow, leaves)
            for loss in islice(
                mean_losses(subject, forward, leaves, self.temperature), before_last
            ):
                _add_products(products, gradients_of(loss, leaves, create_graph=True), flow, leaves)
        return {name: product.mul_(subject.weights[name]) for name, product in products.items()}


def _add_products(
    products: Mapping[str, Tensor],
    gradients: Sequence[Tensor],
    flow: Mapping[str, Tensor],
    leaves: Mapping[str, Tensor],
) -> None:
    """Add the Hessian of one batch's share of the loss, whose gradients these are, times
    ``flow``.
    """
    along = torch.stack(
        [(gradient * flow[name]).sum() for name, gradient in zip(leaves, gradients, strict=True)]
    ).sum()
    for name, product in zip(leaves, gradients_of(along, leaves), strict=True):
        products[name] += product


class InvertedGraSP(GraSP):
    """Keeps the largest -w * Hg, as the comparison that Tanaka et al. 2020 published did by a slip
    of sign.
    """

    def score(self, subject: PruningState) -> dict[str, Tensor]:
        return {name: score.neg_() for name, score in super().score(subject).items()}
