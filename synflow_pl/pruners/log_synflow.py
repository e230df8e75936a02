"""Log-SynFlow: synaptic flow with the logarithm of the gradient.

Cavagnero et al. 2023, "FreeREA: training-free evolution-based architecture search", rank networks
by SynFlow's flow, and replace its gradients, which grow exponentially with depth, by logarithms.
The score of a weight is

    S(w) = |w| * log(1 + dR/d|w|),

where R is that of SynFlow (Tanaka et al. 2020): the sum of the outputs of the positive linear
network for an input of ones. The paper adds the scores of all weights to one number for the
network. Here they are scores of weights, in as many rounds as SynFlow has.

Unlike SynFlow's, the score depends on the scale of R: where gradients are much smaller than one it
is SynFlow's score, and where they are much larger it is close to the magnitude. Such scores
conserve no flow and give no bound on the R that is left after a round, so ``rounds="auto"`` is
refused.

R overflows in deep networks. It is computed up to a power of two 2^k with a known k, and the
logarithm as log(1 + e^a) with a = log(dR/d|w| / 2^k) + k log 2, which does not overflow. Where all
scores would be too small for floating point, they share a factor that raises the largest to |w|.

The authors' code leaves BatchNorm out and adds biases to R; here BatchNorm is its gain over its
running deviation, which is one at initialisation but for its eps, and biases are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from synflow_pl.flow.node import Node
from synflow_pl.pruners.base import PruningState
from synflow_pl.pruners.synflow import SynFlow

__all__ = ["LogSynFlow"]


class LogSynFlow(SynFlow):
    """Keep the weights with the largest |w| log(1 + dR/d|w|).

    It needs no data, only the shape of the input. Weights that no flow can pass are ranked by
    magnitude, as in :class:`SynFlow`.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import LogSynFlow
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
        >>> prune(network, LogSynFlow(), density=0.25, rounds=10, input_shape=(8,)).kept
        10
    """

    scores_are_path_sums = False

    def flow_and_gradients(self, state: PruningState) -> tuple[Tensor, dict[str, Tensor]]:
        exponents: list[Tensor] = []

        def watch(node: Node | None, arguments: Sequence[Any]) -> None:
            if node is None:
                exponents.append(arguments[1].log2().round())

        assert self._linear_network is not None
        flow, gradients = self._linear_network.flow_and_gradients(
            self._flowing(state), state.blocks, watch=watch
        )
        # On a device without float64 the sum below loses some digits.
        wide = torch.float32 if flow.device.type == "mps" else torch.float64
        scale = sum(exponents, start=torch.zeros_like(flow)).to(wide) * math.log(2)
        logarithms = {
            name: _log_log1p_exp(gradient.to(wide).log_().add_(scale))
            for name, gradient in gradients.items()
        }
        largest = torch.stack([value.amax() for value in logarithms.values()]).amax()
        factor = torch.where(largest < _SMALL, largest, 0.0).nan_to_num(neginf=0.0)
        return flow, {
            name: value.sub_(factor).exp_().to(gradients[name].dtype)
            for name, value in logarithms.items()
        }


_SMALL = -60.0
"""Logarithm of scores that are raised; far above the smallest numbers of float32."""


def _log_log1p_exp(exponent: Tensor) -> Tensor:
    """Return log(log(1 + e^a)) for each entry a, also where e^a or the sum is out of range."""
    # For a < -40, log(1 + e^a) is e^a to the last digit.
    return torch.where(
        exponent < -40, exponent, torch.logaddexp(exponent.new_zeros(()), exponent).log()
    )
