"""PX: path exclusion, by an upper bound of the neural tangent kernel's trace (Iurada et al. 2024).

The paper is "Finding lottery tickets in vision models via data-driven spectral foresight pruning".
The output k of a ReLU network is a sum over paths p from input to output,

    f_k(x) = sum_p a_p(x) x_p prod_{w in p} w,

where x_p is the input that the path starts at and a_p(x) is 1 if all ReLUs on it are open, else 0.
The trace of the neural tangent kernel is bounded by a product of two factors, one that depends on
the data and one that does not. PX scores by their product for each output,

    R = sum_n sum_k J_k(x_n) G_k,

    J_k(x) = sum_p a_p(x) x_p^2,        G_k = sum_p prod_{w in p} w^2,

with sums over the paths of kept weights that end at k. J is the output of the network with all its
weights replaced by ones, for squared inputs, with the ReLUs open as in the network itself; G is
that of the positive linear network of squared weights, for an input of ones, as in SynFlow-L2. The
score of a weight is, with J constant,

    S(w) = w^2 * dR/d(w^2),

its share of R. In each round J and G are those of the weights that are still kept. Labels do not
matter.

In other networks the rules of the positive linear network hold (:mod:`synflow_pl.flow.rules`):
additive terms such as biases are left out, a normalisation is its gain in G and one in J. A
pointwise function other than ReLU has the activation phi(z) / z in [0, 1]. Running statistics are
the network's, as in eval mode.

The authors' code differs in networks with BatchNorm, whose statistics it takes from the two
auxiliary passes, and in the classifier if it is called ``fc``, whose weights it neither squares
in G nor replaces by ones in J. It also takes biases along. This module follows the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from synflow_pl.flow import linearise_active
from synflow_pl.flow.node import Node
from synflow_pl.flow.rescaling import power_of_two_scale
from synflow_pl.graph.example_inputs import Inputs
from synflow_pl.graph.network_copy import duplicate
from synflow_pl.pruners.base import PruningState
from synflow_pl.pruners.forward import network_inputs
from synflow_pl.pruners.synflow_l2 import SynFlowL2

__all__ = ["PX"]


class PX(SynFlowL2):
    """Keep the weights with the largest shares of a bound of the neural tangent kernel's trace.

    It needs the inputs of batches, and the loss only to run the network on them.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import PX
        >>> batches = [(torch.randn(6, 8), torch.randint(0, 4, (6,)))]
        >>> prune(torch.nn.Linear(8, 4), PX(), density=0.25, input_shape=(8,), batches=batches).kept
        8
    """

    needs_batches = True
    scores_are_path_sums = False

    def prepare(self, state: PruningState) -> None:
        super().prepare(state)
        self._batches: Sequence[Any] | None = None
        self._pruned: nn.Module | None = duplicate(state.network)
        if any(parameter.dtype in _HALF for parameter in self._pruned.parameters()):
            self._pruned.to(next(iter(state.weights.values())).dtype)

    def flow_and_gradients(self, state: PruningState) -> tuple[Tensor, dict[str, Tensor]]:
        assert self._linear_network is not None
        return self._linear_network.flow_and_gradients(
            self._flowing(state), state.blocks, readout=self._readout(state)
        )

    def finish(self, state: PruningState) -> None:
        super().finish(state)
        self._pruned = self._batches = None
        self._inputs: list[Inputs] = []

    @torch.no_grad()
    def _readout(self, state: PruningState) -> list[Tensor]:
        """Return the sum over the examples of J for each output, up to one power of two.

        Raises:
            ValueError: If the network's outputs for a batch are not those for one example, repeated
                along the first dimension.
        """
        assert self._pruned is not None
        assert self._linear_network is not None
        if state.batches is not self._batches:
            # The first call of the network does not depend on its weights.
            self._batches, self._inputs = state.batches, network_inputs(state)
        for name, mask in state.masks.items():
            self._pruned.get_parameter(name).copy_(state.network.get_parameter(name) * mask)
        shapes = self._linear_network.output_shapes
        parts: list[tuple[list[Tensor], int]] = []
        for inputs in self._inputs:
            found, power = _activation(self._pruned, inputs, state)
            if [part.shape[1:] for part in found] != [shape[1:] for shape in shapes]:
                raise ValueError(
                    f"PX: for a batch {type(state.network).__name__} returns tensors of shapes"
                    f" {[tuple(part.shape) for part in found]}, and for one example"
                    f" {[tuple(shape) for shape in shapes]}; they must agree but for the first"
                    " dimension, the batch"
                )
            parts.append(([part.sum(0) for part in found], power))
        largest = max(power for _, power in parts)
        sums = [
            torch.stack(
                [part[index] * math.ldexp(1.0, power - largest) for part, power in parts]
            ).sum(0)
            for index in range(len(shapes))
        ]
        scale = power_of_two_scale(torch.stack([total.amax() for total in sums]))
        return [total / scale for total in sums]


_HALF = (torch.float16, torch.bfloat16)


def _activation(
    network: nn.Module, inputs: Inputs, state: PruningState
) -> tuple[list[Tensor], int]:
    """Return J for each example and output, and the exponent of a power of two that it lacks.

    Args:
        network: Network with zeros in place of removed weights.
        inputs: Inputs of a batch.
        state: State of the pruning, whose masks are used.
    """
    paths = linearise_active(network, inputs)
    powers: list[Tensor] = []

    def watch(node: Node | None, arguments: Sequence[Any]) -> None:
        if node is None:
            powers.append(arguments[1].log2())

    masks = {
        name: mask.to(paths.dtype) for name, mask in state.masks.items() if name in paths.weights
    }
    device = next(iter(state.masks.values())).device
    # R is linear in the readout, so its derivative is the output of each unit.
    readout = [
        torch.ones(shape, dtype=paths.dtype, device=device).requires_grad_()
        for shape in paths.output_shapes
    ]
    with torch.enable_grad():
        total = paths.flow(masks, gains=False, watch=watch, readout=readout)
    return list(torch.autograd.grad(total, readout)), round(sum(float(power) for power in powers))
