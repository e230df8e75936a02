"""SynFlow: iterative synaptic flow pruning (Tanaka et al. 2020, "Pruning neural networks without any data by iteratively conserving
synaptic flow", Algorithm 1).

Let R = 1^T f(1) be the output, summed, of the network's positive linear skeleton for an input of ones: the total weight of all paths
from input to output. A weight's score is its share of it,

    S(w) = |w| * dR/d|w|        (Equation 2)

the flow through that weight. Flow is conserved: what enters a hidden unit leaves it (Theorem 1), and every cut between input and
output carries all of it (Theorem 2). So a small layer's weights score high, and if scores are taken anew after each small cut, the
last weight of a layer, which carries all the flow, is never the one to go.
"""

from __future__ import annotations

from synflow_pl.flow import Skeleton, linearise
from synflow_pl.pruners.pruner import Pruner, Saliency, Subject

__all__ = ["SynFlow"]


class SynFlow(Pruner):
    """Keeps the weights that the most synaptic flow passes through; needs no data, only the input's shape."""

    rounds = 100
    needs_input = True

    def __init__(self) -> None:
        self._skeleton: Skeleton | None = None

    def prepare(self, subject: Subject) -> None:
        assert subject.inputs is not None
        self._skeleton = skeleton = linearise(subject.network, subject.inputs)
        subject.blockable = skeleton.blockable
        if still := [name for name in subject.weights if name not in skeleton.weights]:
            raise ValueError(
                f"SynFlow: no flow passes through {still[0]!r}"
                + (f" and {len(still) - 1} more" if len(still) > 1 else "")
                + f"; leave it dense with exclude=[{still[0]!r}]"
            )
        for name, weight in subject.weights.items():
            weight.abs_()
            if not weight.any():
                weight.fill_(1)  # all zero at initialisation: counts as ones, or it would silence every score
            subject.weights[name] = weight.to(skeleton.dtype)

    def score(self, subject: Subject) -> dict[str, Saliency]:
        assert self._skeleton is not None
        gradients = self._skeleton.gradients(subject.weights, subject.blocks)
        return {name: Saliency(weight, gradients[name]) for name, weight in subject.weights.items()}
