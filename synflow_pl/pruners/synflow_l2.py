"""SynFlow-L2: synaptic flow of squared weights, in two variants.

The methods are those of Gebhart et al. 2021, "A unified paths perspective for pruning at
initialization", and Patil & Dovrolis 2021, "PHEW", Section 3. The positive linear network has the
weights w^2 instead of |w|. Its flow R is a sum over all paths from input to output. Each term is
the product of the squared weights on the path, so R is the trace of the path kernel.
:class:`SynFlowL2` scores a weight by its share of R,

    S(w) = w^2 * dR/d(w^2) = 1/2 w * dR/dw,

which is the synaptic saliency of R (Tanaka et al. 2020, Equation 1). It is therefore conserved at
hidden units and between layers (Theorems 1 and 2), and no layer loses all its weights before it has
to (Theorem 3). It is not the square of SynFlow's score: it is a sum of squares over paths, and not
the square of a sum.

:class:`SynFlowL2AsPublished` scores by

    S(w) = |w| * dR/d(w^2) = 1/2 |dR/dw|,

as the code of Patil & Dovrolis does. This is the sensitivity of R to a weight and not the weight's
share of R: a factor of |w| is missing, nothing is conserved, and the masks differ. Results
published under the name SynFlow-L2 come from this score. Scores that are not shares of R give no
bound on the R that is left after a round, so ``rounds="auto"`` is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from synflow_pl.graph.network_copy import duplicate
from synflow_pl.pruners.base import PruningState, Saliency
from synflow_pl.pruners.synflow import SynFlow

__all__ = ["SynFlowL2", "SynFlowL2AsPublished"]


class SynFlowL2(SynFlow):
    """Keep the weights with the largest share of the trace of the path kernel, w^2 dR/d(w^2).

    It needs no data, only the shape of the input. Results published as SynFlow-L2 come from another
    score, :class:`SynFlowL2AsPublished`.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import SynFlowL2
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
        >>> prune(network, SynFlowL2(), density=0.25, rounds=10, input_shape=(8,)).kept
        10
    """

    def positive_weight(self, weight: Tensor) -> Tensor:
        return weight.square()

    @torch.no_grad()
    def scored_network(self, network: nn.Module) -> nn.Module:
        # Parameters that are not pruned are squared as well: gains, excluded layers and the running
        # standard deviations of normalisations.
        squared = duplicate(network)
        for parameter in squared.parameters():
            parameter.square_()
        for module in squared.modules():
            if isinstance(module, _NormBase) and module.running_var is not None:
                module.running_var.add_(module.eps).square_().sub_(module.eps)
        return squared


class SynFlowL2AsPublished(SynFlowL2):
    """Keep the weights to which the trace of the path kernel is most sensitive, |w| dR/d(w^2).

    This is the score in the code of Patil & Dovrolis 2021, for comparison with published results of
    SynFlow-L2. Unlike :class:`SynFlowL2` it conserves no flow. Weights that no flow can pass are
    ranked by magnitude, as in :class:`SynFlow`.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import SynFlowL2AsPublished
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
        >>> prune(network, SynFlowL2AsPublished(), density=0.25, rounds=10, input_shape=(8,)).kept
        10
    """

    scores_are_path_sums = False

    def score(self, state: PruningState) -> dict[str, Saliency | Tensor]:
        return {
            name: Saliency(score.weight.sqrt(), score.gradient)
            if isinstance(score, Saliency)
            else score
            for name, score in super().score(state).items()
        }
