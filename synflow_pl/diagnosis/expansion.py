"""Expansion: how well the kept weights of a layer connect its inputs and units.

The kept weights of a layer are the edges of a bipartite graph between units and inputs, where each
entry of a kernel is an input of its own. Nodes without an edge are left out. The eigenvalues of its
adjacency matrix are the singular values of the mask as a matrix, with both signs. Two numbers are
computed from the two largest, sigma_1 and sigma_2:

- the spectral gap sigma_1 - sigma_2: the larger, the more neighbours sets of nodes have;
- the difference of bound of Hoang et al. 2023, "Revisiting pruning at initialization through the
  lens of Ramanujan graph",

      Delta_r = sqrt(d_L - 1) + sqrt(d_R - 1) - sigma_2

  with the mean degrees d_L and d_R of inputs and units. A graph whose nodes all have one of these
  degrees is a Ramanujan graph, which connects as well as a graph of its degrees can, if it is not
  negative; with mean degrees it is the definition of Hoory 2005 for irregular graphs. As in the
  authors' code it is only given if both mean degrees are at least 3.

The authors find no significant relation between this number and the accuracy of networks of one
density.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Spectrum", "spectrum"]

_MIN_DEGREE = 3


class Spectrum(NamedTuple):
    """Spectral properties of the graph of a layer's kept weights."""

    gap: float
    """Difference of the two largest singular values, at least 0; NaN if no weight is kept."""
    ramanujan: float
    """Delta_r: not negative for a Ramanujan graph; NaN if a mean degree is less than 3."""


def spectrum(mask: Tensor) -> Spectrum:
    """Return the spectral properties of the graph of kept weights.

    The time grows with the square of the smaller number of nodes, of units or inputs, times the
    larger.

    Args:
        mask: Bool mask (units, inputs, kernel...), True where the weight is kept.

    Example:
        >>> whole = spectrum(torch.ones(4, 9, dtype=torch.bool))
        >>> round(whole.gap, 3), round(whole.ramanujan, 3)  # 6 - 0, and sqrt(3) + sqrt(8) - 0
        (6.0, 4.56)
    """
    matrix = mask.flatten(1)
    matrix = matrix[matrix.any(1)][:, matrix.any(0)]
    if not matrix.numel():
        return Spectrum(math.nan, math.nan)
    edges = int(matrix.count_nonzero())
    degrees = [edges / count for count in matrix.shape]
    # On a device without float64 the products below are exact up to 2^24 common neighbours.
    matrix = matrix.to(torch.float32 if mask.device.type == "mps" else torch.float64)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    values = torch.linalg.eigvalsh((matrix @ matrix.T).cpu()).clamp(min=0).sqrt()
    first, second = float(values[-1]), float(values[-2]) if len(values) > 1 else 0.0
    bound = (
        sum(math.sqrt(degree - 1) for degree in degrees)
        if min(degrees) >= _MIN_DEGREE
        else math.nan
    )
    return Spectrum(first - second, bound - second)
