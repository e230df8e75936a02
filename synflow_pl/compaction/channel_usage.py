"""Which input channels of a layer each of its output channels needs.

A row of a weight is an output channel, and a column an input channel. A row *needs* a column if
the row's output would change without the column, and no change of the bias could compensate. A row
does not need a column if its weight for the column is zero, if the channel is zero everywhere, or
if the channel is a constant that can be folded into the bias. Folding is exact if the constant
contributes the same at every position: in a linear layer, or in a convolution whose nonzero kernel
entries for the channel never read padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from synflow_pl.compaction.slice_ids import Contraction
from synflow_pl.graph.trace import Operation, Value

__all__ = ["ChannelUsage", "measure_usage"]

aten = torch.ops.aten


@dataclass(frozen=True)
class ChannelUsage:
    """Use of the columns of a contraction by its rows.

    Attributes:
        contraction: The contraction.
        needed: (rows, columns) bool, whether the row needs the column.
        bias_term: (rows, columns) float64, contribution of the column to the row, the same at every
            position, which the bias has to make up for if the column is removed.
        constant: (columns,) bool, columns that do not depend on the input of the network.
    """

    contraction: Contraction
    needed: Tensor
    bias_term: Tensor
    constant: Tensor


@torch.no_grad()
def measure_usage(
    contraction: Contraction,
    operation: Operation,
    output: Tensor,
    tensor: Callable[[Value], Tensor],
    foldable: bool,
) -> ChannelUsage:
    """Return which columns of a contraction its rows need.

    Args:
        contraction: The contraction.
        operation: Operation of the contraction.
        output: Recorded output of the operation, of which only the shape is used.
        tensor: Function that returns the tensor of a value, NaN where it is not a constant.
        foldable: Whether the layer has a bias of its own or can be given one.
    """
    signal, weight = tensor(contraction.signal), tensor(contraction.weight)
    if operation.name == "convolution":
        transposed = operation.args[6]
        foldable &= not transposed
        taps = (weight != 0) & _used_taps(signal, weight, output, operation)
        if transposed:
            weight, taps = weight.transpose(0, 1), taps.transpose(0, 1)
        values = signal.transpose(0, 1).flatten(1)
        needed = taps.flatten(2).any(2)
        folds = (
            ~(taps & ~_taps_without_padding(signal, weight, operation)).flatten(2).any(2)
            if foldable
            else needed
        )
        parts = torch.where(taps, weight, 0).flatten(2).sum(2)
    else:
        values, parts = signal.t(), weight.t()
        needed = (parts != 0) & (values != 0).any(1)
        folds = needed
    constant = ~values.isnan().any(1)
    uniform = constant & (values == values[:, :1]).all(1)
    folded = needed & folds & uniform & ~parts.isnan() & foldable
    bias_term = (
        torch.where(folded, parts * values[:, 0], 0)
        if folded.any()
        else parts.new_zeros(()).expand(folded.shape)  # takes no memory
    )
    return ChannelUsage(contraction, (needed & ~folded).cpu(), bias_term.cpu(), constant.cpu())


def _used_taps(signal: Tensor, weight: Tensor, output: Tensor, operation: Operation) -> Tensor:
    """Return which kernel entries read more than padding and zeros, in the weight's shape."""
    how = (*operation.args[3:9], [False, True, False])
    ones = torch.ones_like(output, dtype=signal.dtype)
    counts: Tensor = aten.convolution_backward(
        ones, (signal != 0).to(signal.dtype), weight, None, *how
    )[1]
    return counts > 0.5


def _taps_without_padding(signal: Tensor, weight: Tensor, operation: Operation) -> Tensor:
    r"""Return which kernel positions never read padding, (\*kernel) bool."""
    kernel = weight.shape[2:]
    taps = torch.eye(kernel.numel(), dtype=signal.dtype, device=signal.device).view(-1, 1, *kernel)
    output = aten.convolution(
        signal.new_ones(1, 1, *signal.shape[2:]), taps, None, *operation.args[3:9]
    )
    return (output > 0.5).flatten(2).all(2).view(kernel)
