"""Conservation of scores at hidden units (Tanaka et al. 2020, Theorem 1 and Figure 3).

For a score of the form dR/dw * w (synaptic saliency) and a homogeneous network without biases, the
scores of the weights into a hidden unit and of the weights out of it have the same sum. SynFlow's
score is of this form, and so is w dL/dw. The magnitude of the latter, which is SNIP's score, is
not, nor are magnitudes and random numbers. GraSP's w Hg is close to it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["unit_differences"]


def unit_differences(sums: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the relative difference of incoming and outgoing scores of each unit.

    The difference is abs(in - out) / max(abs(in), abs(out)): 0 if scores are conserved, up to 2 for
    opposite signs.

    Args:
        sums: For each layer, the sums of the scores into each unit and out of each unit, as
            :func:`synflow_pl.flow.unit_sums` returns them.

    Returns:
        Differences, float64 (units of all layers,); 0 for a unit without scores.
    """
    into, out = (torch.cat(side).double() for side in zip(*sums, strict=True))
    larger = torch.maximum(into.abs(), out.abs())
    return torch.where(larger > 0, (into - out).abs() / larger, 0)
