"""Copies of the active units and inputs of a weight, in memory that exists already."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from synflow_pl.order_statistics import nonzero_indices

__all__ = ["nonzero_or_first", "select_block"]


def select_block(
    whole: Tensor, units: Tensor, inputs: Tensor, spare: Tensor, into: Tensor
) -> Tensor:
    """Copy some units and inputs of a tensor through the memory ``spare`` to the memory ``into``.

    Reusing memory avoids fragmentation: freed blocks of ever different sizes would leave gaps that
    no later allocation fits.

    Args:
        whole: Tensor (all units, all inputs, *kernel).
        units: Indices of the units.
        inputs: Indices of the inputs.
        spare: Memory for the intermediate result.
        into: Memory for the result; may be that of ``whole``.
    """
    shape = (units.numel(), inputs.numel(), *whole.shape[2:])
    rows = torch.index_select(
        whole, 0, units, out=_view_in(spare, (units.numel(), *whole.shape[1:]))
    )
    return torch.index_select(rows, 1, inputs, out=_view_in(into, shape))


def _view_in(memory: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of a shape in the memory of another that is at least as large."""
    return memory.view(-1)[: math.prod(shape)].view(shape)


def nonzero_or_first(mask: Tensor) -> Tensor:
    """Return the ascending indices of nonzero entries, or [0] if there are none.

    At least one index is returned so that no block is empty.
    """
    indices = nonzero_indices(mask.bool())
    return indices if indices.numel() else torch.zeros(1, dtype=torch.int64, device=mask.device)
