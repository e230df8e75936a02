"""SynFlow-L2: synaptic flow through the squares of a network (Gebhart et al. 2021, "A unified paths perspective for pruning at
initialization"; Patil & Dovrolis 2021, "PHEW", Section 3).

The skeleton of w^2 instead of |w|: its flow R is the sum over all input-output paths of the squares of the weights on them, the trace
of the path kernel. A weight's score is its share of it,

    S(w) = w^2 * dR/d(w^2),

which is not the square of SynFlow's score: a sum of squares over paths, not a square of their sum.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from synflow_pl.pruners.synflow import SynFlow

__all__ = ["SynFlowL2"]


class SynFlowL2(SynFlow):
    """Keeps the weights that the most of the path kernel's trace passes through; needs no data, only the input's shape."""

    def positive(self, weight: Tensor) -> Tensor:
        return weight.square()

    @torch.no_grad()
    def followed(self, network: nn.Module) -> nn.Module:
        # What does not compete is squared as well: gains, excluded layers, and what a normalisation divides by.
        squared = copy.deepcopy(network)
        for parameter in squared.parameters():
            parameter.square_()
        for module in squared.modules():
            if isinstance(module, _NormBase) and module.running_var is not None:
                module.running_var.add_(module.eps).square_().sub_(module.eps)
        return squared
