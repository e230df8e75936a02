"""Weights as the linear network takes them: their magnitudes, and blocks of pruned ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Block", "magnitude", "through_block"]


class Block(NamedTuple):
    """The rows and columns of a weight that hold its kept weights.

    A unit without kept inputs, or an input without kept readers, carries no flow and can be left
    out.
    """

    units: Tensor
    """(rows,) int64, ascending: units (first dimension) with a kept weight."""
    inputs: Tensor
    """(columns,) int64, ascending: inputs (second dimension) that a kept weight reads."""


def magnitude(weight: Tensor) -> Tensor:
    """Return |weight|, or ones if the weight is zero throughout.

    A last layer that is initialised to zero would otherwise make every score of the network zero.

    Example:
        >>> import torch
        >>> from synflow_pl.flow import magnitude
        >>> magnitude(torch.tensor([1.0, -2.0])), magnitude(torch.zeros(2))
        (tensor([1., 2.]), tensor([1., 1.]))
    """
    positive = weight.detach().abs()
    return positive if bool(positive.any()) else torch.ones_like(positive)


def through_block(
    function: Callable[..., Tensor], arguments: Sequence[Any], block: Block, units: int
) -> Tensor:
    """Compute a node on the block of its weight.

    Args:
        function: Function of the node.
        arguments: Arguments of the node, with the block in place of the weight.
        block: Rows and columns of the block.
        units: Number of rows of the whole weight.

    Returns:
        The output of the node, zero for units outside the block.
    """
    signal, weight, *rest = arguments
    part = function(signal.index_select(1, block.inputs), weight, *rest)
    return part.new_zeros(part.shape[0], units, *part.shape[2:]).index_copy(1, block.units, part)
