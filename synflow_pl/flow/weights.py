"""Weights as the linear network takes them: magnitudes, blocks of pruned ones, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Block", "magnitude", "separate_memory", "through_block"]


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


def separate_memory(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients of weights, each with memory of its own.

    The gradient of a sum is one expanded number, and two terms of a sum share their gradient.

    Args:
        gradients: Tensors, of which those that share memory are copied.
    """
    taken: set[int] = set()
    separated = []
    for gradient in gradients:
        by_stride = sorted(range(gradient.dim()), key=gradient.stride, reverse=True)
        overlaps = not gradient.permute(by_stride).is_contiguous()
        if overlaps or gradient.data_ptr() in taken:
            gradient = gradient.clone(memory_format=torch.contiguous_format)
        taken.add(gradient.data_ptr())
        separated.append(gradient)
    return separated
