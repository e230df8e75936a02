"""GraSP: gradient signal preservation (Wang et al. 2020).

The paper is "Picking winning tickets before training by preserving gradient flow". With g = dL/dw
and the Hessian H of L, removing a weight changes the gradient flow g^T g by -2 w * (Hg) to first
order (Equation 8, without the factor of 2). Gradient flow is preserved, or raised, by removing the
weights with the smallest w * (Hg), so the score is

    S(w) = w * (Hg).

In a network that is already pruned a removed weight is not a parameter: with masks c the loss is a
function of the kept weights alone, so both g and H are those of L(c * w), g^T g is a sum over kept
weights, and

    S(w) = w * c * (H (c * g)).

Logits are divided by a temperature, 200 as in the paper, in both passes, and both passes use the
same batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from synflow_pl.pruners.base import Pruner, PruningState
from synflow_pl.pruners.forward import gradients_of, scored_losses

__all__ = ["GraSP", "InvertedGraSP"]


class GraSP(Pruner):
    """Keep the weights without which the gradient flow would decrease.

    Args:
        temperature: Positive number by which the network's outputs, the logits, are divided.

    Raises:
        ValueError: If the temperature is not positive.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import GraSP
        >>> batches = [(torch.randn(6, 8), torch.randint(0, 4, (6,)))]
        >>> prune(torch.nn.Linear(8, 4), GraSP(), density=0.25, batches=batches).kept
        8
    """

    needs_batches = True

    def __init__(self, temperature: float = 200.0) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature: {temperature} must be positive; the paper uses 200")
        self.temperature = temperature

    def score(self, state: PruningState) -> dict[str, Tensor]:
        leaves = {name: weight.detach().requires_grad_() for name, weight in state.weights.items()}
        # Fused attention kernels have no second derivative.
        with (
            sdpa_kernel(SDPBackend.MATH),
            scored_losses(state, leaves, self.temperature) as losses,
        ):
            flow = {name: torch.zeros_like(weight) for name, weight in leaves.items()}
            products = {name: torch.zeros_like(weight) for name, weight in leaves.items()}
            gradients: tuple[Tensor, ...] = ()
            before_last = len(state.batches) - 1
            for index, loss in enumerate(losses()):
                gradients = gradients_of(loss, leaves, create_graph=index == before_last)
                for name, gradient in zip(leaves, gradients, strict=True):
                    flow[name] += gradient.detach()
            for name, total in flow.items():
                total.masked_fill_(~state.masks[name], 0)  # a removed weight has no gradient
            # The graph of the last batch is still in memory. Those of the other batches would take
            # too much of it and are computed again.
            _add_products(products, gradients, flow, leaves)
            for loss in islice(losses(), before_last):
                _add_products(products, gradients_of(loss, leaves, create_graph=True), flow, leaves)
        return {name: product.mul_(state.weights[name]) for name, product in products.items()}


def _add_products(
    products: Mapping[str, Tensor],
    gradients: Sequence[Tensor],
    flow: Mapping[str, Tensor],
    leaves: Mapping[str, Tensor],
) -> None:
    """Add the product of one batch's Hessian and ``flow`` to ``products``, in place.

    Args:
        products: Products to add to, by parameter name.
        gradients: Gradients of the batch's share of the loss, with their graph.
        flow: Vector that the Hessian is multiplied by, by parameter name.
        leaves: Weights at which the gradients were taken, by parameter name.
    """
    along = torch.stack(
        [(gradient * flow[name]).sum() for name, gradient in zip(leaves, gradients, strict=True)]
    ).sum()
    for name, product in zip(leaves, gradients_of(along, leaves), strict=True):
        products[name] += product


class InvertedGraSP(GraSP):
    """Keep the weights with the largest -w * (Hg).

    Tanaka et al. 2020 published their comparison with this score, which has the wrong sign.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import InvertedGraSP
        >>> batches = [(torch.randn(6, 8), torch.randint(0, 4, (6,)))]
        >>> prune(torch.nn.Linear(8, 4), InvertedGraSP(), density=0.25, batches=batches).kept
        8
    """

    def score(self, state: PruningState) -> dict[str, Tensor]:
        return {name: score.neg_() for name, score in super().score(state).items()}
