"""Units: what comes in goes out (Tanaka et al. 2020, Theorem 1 and Figure 3).

For a score of the form dR/dw * w, synaptic saliency, and a homogeneous network without biases, the
scores of the weights into a hidden unit and those of the weights out of it have the same sum.
SynFlow's score is of this form, and so is w dL/dw; its magnitude, which is SNIP's score, is not,
nor are a magnitude or a random number. GraSP's w Hg comes close.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["unit_differences"]


def unit_differences(sums: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """How far each unit is from conservation: |in - out| over the larger of |in| and |out|, from 0 (conserved) to 2 (opposite signs).

    Args:
        sums: by layer, the sums of the scores into each unit and out of each, as
            :func:`synflow_pl.flow.unit_sums` gives them.

    Returns:
        (units of all layers,) float64; 0 for a unit without any score.
    """
    into, out = (torch.cat(side).double() for side in zip(*sums, strict=True))
    larger = torch.maximum(into.abs(), out.abs())
    return torch.where(larger > 0, (into - out).abs() / larger, 0)
