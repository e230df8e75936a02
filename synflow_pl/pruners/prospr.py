"""ProsPr: prospect pruning, by the loss after the first steps of training (Alizadeh et al. 2022).

The paper is "Prospect pruning: finding trainable weights at initialization using meta-gradients".
Each weight has a mask entry c, and the network is trained for M steps of stochastic gradient
descent with learning rate lr and momentum mu, from the masked weights:

    w_0 = c * w,    v_{m+1} = mu v_m + dL_m/dw (w_m),    w_{m+1} = w_m - lr v_{m+1},    v_0 = 0.

The score is the sensitivity of the loss after these steps to the entry, at c = 1:

    S(w) = | dL_M(w_M)/dc | = | w * dL_M(w_M)/dw_0 |.

The loss L_m is that of batch m; the batches are repeated in order if there are fewer than M + 1.
Parameters that are not pruned are trained as well, frozen ones are not. With M = 0 it is SNIP.

The derivative goes through all steps (the meta-gradient). It is computed backwards by the chain
rule. With p = dL_M/dw_m and q = dL_M/dv_m, from p = dL_M/dw (w_M) and q = 0,

    q <- mu q - lr p,        p <- p + H_m(w_m) q        for m = M - 1, ..., 0,

where H_m is the Hessian of L_m. Each product with a Hessian is computed from one forward pass that
is run again, so the memory needed is M copies of the weights and the graph of the second
derivatives of one batch, as for GraSP. The first-order variant takes dw_M/dw_0 for the identity:

    S(w) = | w * dL_M/dw (w_M) |,

and needs the memory of a training step.

In a network that is already pruned a removed weight is not a parameter: it stays zero in all steps.

The authors' code keeps the graphs of all M steps in memory. With momentum it also takes the first
gradient, v_1, for a constant, since it detaches the first momentum buffer, so that the step m = 0
is left out above. This module follows the paper, unless ``detach_first`` asks for the score in
the code. The two choose different masks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from synflow_pl.graph.network_state import seed
from synflow_pl.pruners.base import Pruner, PruningState
from synflow_pl.pruners.batches import cast
from synflow_pl.pruners.forward import gradients_of, nonempty, scored_losses

__all__ = ["ProsPr"]


class ProsPr(Pruner):
    """Keep the weights on which the loss after some steps of training depends the most.

    Args:
        steps: Number M of training steps, at least 1.
        lr: Learning rate of the steps, positive.
        momentum: Momentum of the steps, in [0, 1).
        first_order: Whether the derivative of the steps themselves is left out, which takes about a
            quarter of the time and the memory of a training step.
        detach_first: Whether the first gradient counts as a constant, as it does in the authors'
            code if there is momentum.

    Raises:
        ValueError: If an option is impossible, naming its value.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import ProsPr
        >>> batches = [(torch.randn(6, 8), torch.randint(0, 4, (6,)))]
        >>> prune(torch.nn.Linear(8, 4), ProsPr(), density=0.25, batches=batches).kept
        8
    """

    needs_batches = True

    def __init__(
        self,
        steps: int = 3,
        lr: float = 0.5,
        momentum: float = 0.9,
        first_order: bool = False,
        detach_first: bool = False,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps: {steps} must be at least 1; for no steps choose SNIP")
        if not lr > 0:
            raise ValueError(f"lr: {lr} must be positive; the example of the authors uses 0.5")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: {momentum} must be in [0, 1)")
        if first_order and detach_first:
            raise ValueError(
                "detach_first: True, but first_order=True leaves out the derivatives of all steps;"
                " leave one of them out"
            )
        self.steps = steps
        self.lr = lr
        self.momentum = momentum
        self.first_order = first_order
        self.detach_first = detach_first

    def score(self, state: PruningState) -> dict[str, Tensor]:
        current = _parameters(state)
        moving = _moving(state, current)
        path: list[dict[str, Tensor]] = []
        velocity: dict[str, Tensor] = {}
        for step in range(self.steps):
            if moving and not self.first_order:
                path.append(current)
            gradients = _derivative(state, current, step)
            for name, mask in moving.items():
                gradient = gradients[name].mul_(mask)
                velocity[name] = (
                    gradient.add_(velocity[name], alpha=self.momentum) if step else gradient
                )
            current = {
                name: value.sub(velocity[name], alpha=self.lr) if name in moving else value
                for name, value in current.items()
            }
        by_weight = _derivative(state, current, self.steps)
        by_velocity = {name: torch.zeros_like(current[name]) for name in moving}
        while len(path) > self.detach_first:
            for name, mask in moving.items():
                by_velocity[name].mul_(self.momentum).sub_(by_weight[name] * mask, alpha=self.lr)
            current = path.pop()
            products = _derivative(state, current, len(path), along=by_velocity)
            for name, product in products.items():
                by_weight[name] += product
        return {name: by_weight[name].mul_(weight).abs_() for name, weight in state.weights.items()}


def _parameters(state: PruningState) -> dict[str, Tensor]:
    """Return the weights and all other floating-point parameters that are trained, by name."""
    like = next(iter(state.weights.values()))
    others = {
        name: cast(parameter, like)
        for name, parameter in state.network.named_parameters()
        if parameter.requires_grad and parameter.is_floating_point()
    }
    return others | state.weights


def _moving(state: PruningState, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return for each parameter that is trained which of its entries are, by name.

    Args:
        state: State of the pruning.
        parameters: Parameters by name.
    """
    always = next(iter(state.masks.values())).new_ones(())
    return {
        name: state.masks.get(name, always)
        for name in parameters
        if state.network.get_parameter(name).requires_grad
    }


def _derivative(
    state: PruningState,
    parameters: Mapping[str, Tensor],
    step: int,
    along: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the gradient of the loss in a step, or the product of its Hessian and a vector.

    Args:
        state: State of the pruning.
        parameters: Parameters at which to differentiate, by name.
        step: Index of the step, which decides the batch and the random numbers.
        along: Vector that the Hessian is multiplied by, by names of parameters, zero for others;
            ``None`` returns the gradient.
    """
    batches = nonempty(state)
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    with (
        # Fused attention kernels have no second derivative.
        sdpa_kernel(SDPBackend.MATH),
        scored_losses(state, leaves, indices=[batches[step % len(batches)]]) as losses,
    ):
        # Each step has its own random numbers, which are the same when it is run again.
        seed((torch.initial_seed() + step) % 2**63)
        (loss,) = losses()
        derivatives = gradients_of(loss, leaves, create_graph=along is not None)
        if along is not None:
            rate = torch.stack(
                [
                    (gradient * along[name]).sum()
                    for name, gradient in zip(leaves, derivatives, strict=True)
                    if name in along
                ]
            ).sum()
            derivatives = gradients_of(rate, leaves)
    return {
        name: derivative.detach().clone()
        for name, derivative in zip(leaves, derivatives, strict=True)
    }
