"""SynFlow-L2: synaptic flow through the squares of a network (Gebhart et al. 2021, "A unified paths
perspective for pruning at initialization"; Patil & Dovrolis 2021, "PHEW", Section 3), in two
variants.

The skeleton of w^2 instead of |w|: its flow R is the sum over all input-output paths of the squares of the weights on them. This is
the trace of the path kernel. :class:`SynFlowL2` scores a weight by its share of R,

    S(w) = w^2 * dR/d(w^2) = 1/2 w * dR/dw,

which is the synaptic saliency of R (Tanaka et al. 2020, Equation 1), so it is conserved at hidden
units and between layers (Theorems 1 and 2) and no layer empties before it must (Theorem 3). It is
not the square of SynFlow's score: a sum of squares over paths, not a square of their sum.

:class:`SynFlowL2AsPublished` scores by

    S(w) = |w| * dR/d(w^2) = 1/2 |dR/dw|,

as the code of Patil & Dovrolis does. This is the sensitivity of R to a weight and not the weight's share: a factor of |w| is missing,
nothing is conserved, and the masks differ. Results published under the name SynFlow-L2 come from this score.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from synflow_pl.pruners.base import PruningState, Saliency
from synflow_pl.pruners.synflow import SynFlow

__all__ = ["SynFlowL2", "SynFlowL2AsPublished"]


class SynFlowL2(SynFlow):
    """Keeps the weights with the largest share of the path kernel's trace, w^2 dR/d(w^2); needs no
    data, only the input's shape.

    Results published as SynFlow-L2 come from another score, :class:`SynFlowL2AsPublished`.
    """

    def positive(self, weight: Tensor) -> Tensor:
        return weight.square()

    @torch.no_grad()
    def followed(self, network: nn.Module) -> nn.Module:
        # What does not compete is squared as well: gains, excluded layers, and what a normalisation
        # divides by.
        squared = copy.deepcopy(network)
        for parameter in squared.parameters():
            parameter.square_()
        for module in squared.modules():
            if isinstance(module, _NormBase) and module.running_var is not None:
                module.running_var.add_(module.eps).square_().sub_(module.eps)
        return squared


class SynFlowL2AsPublished(SynFlowL2):
    """Keeps the weights to which the path kernel's trace is most sensitive, |w| dR/d(w^2), as the code of Patil & Dovrolis 2021 does.

    Choose it to compare with published results of SynFlow-L2. Unlike :class:`SynFlowL2` it
    conserves no flow. Weights that no flow passes through are ranked by magnitude among themselves,
    as in :class:`SynFlow`.
    """

    def score(self, subject: PruningState) -> dict[str, Saliency | Tensor]:
        return {
            name: Saliency(score.weight.sqrt(), score.gradient)
            if isinstance(score, Saliency)
            else score
            for name, score in super().score(subject).items()
        }
