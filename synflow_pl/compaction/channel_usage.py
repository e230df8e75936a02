"""Reading: what each row of a weight makes of each column that it reads.

A column *matters* to a row if removing it would change what the row gives in a way that nothing
else can make good. It does not if the row's weight for it is zero, or if all that the column holds
is zero, or if it holds a constant whose part can be moved into the layer's bias: exactly so where
every position gets the same of it, in a linear layer or where no tap with a weight ever reads
padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from synflow_pl.compaction.channel_groups import Contraction
from synflow_pl.graph.trace import Operation, Value

__all__ = ["ChannelUsage", "read"]

aten = torch.ops.aten


@dataclass(frozen=True)
class ChannelUsage:
    """A contraction and its two tables, (rows, columns).

    Attributes:
        contraction: the operation.
        matters: bool.
        adds: float64, what a column that is removed has given to each row, at every position alike;
            to be added to the bias.
        constant: (columns,) bool, columns that hold the same whatever the input is.
    """

    contraction: Contraction
    needed: Tensor
    bias_term: Tensor
    constant: Tensor


@torch.no_grad()
def read(
    contraction: Contraction,
    operation: Operation,
    made: Tensor,
    tensor: Callable[[Value], Tensor],
    foldable: bool,
) -> ChannelUsage:
    """Look at one contraction while it is replayed.

    Args:
        contraction: which it is.
        operation: the same.
        made: what it gave when it was recorded; its shape counts.
        tensor: gives the tensor of a value, NaN where it varies.
        foldable: whether the layer has a bias, or may be given one, that is its own.
    """
    signal, weight = tensor(contraction.signal), tensor(contraction.weight)
    if operation.name == "convolution":
        transposed = operation.args[6]
        foldable &= not transposed
        taps = (weight != 0) & _reached(signal, weight, made, operation)
        if transposed:
            weight, taps = weight.transpose(0, 1), taps.transpose(0, 1)
        seen = signal.transpose(0, 1).flatten(1)
        needed = taps.flatten(2).any(2)
        folds = (
            ~(taps & ~_inside(signal, weight, operation)).flatten(2).any(2) if foldable else needed
        )
        parts = torch.where(taps, weight, 0).flatten(2).sum(2)
    else:
        seen, parts = signal.t(), weight.t()
        needed = (parts != 0) & (seen != 0).any(1)
        folds = needed
    constant = ~seen.isnan().any(1)
    alike = constant & (seen == seen[:, :1]).all(1)
    folded = needed & folds & alike & ~parts.isnan() & foldable
    bias_term = torch.where(folded, parts * seen[:, 0], 0)
    return ChannelUsage(contraction, (needed & ~folded).cpu(), bias_term.cpu(), constant.cpu())


def _reached(signal: Tensor, weight: Tensor, made: Tensor, operation: Operation) -> Tensor:
    """Which taps ever read anything: neither padding nor zeros alone."""
    how = (*operation.args[3:9], [False, True, False])
    ones = torch.ones_like(made, dtype=signal.dtype)
    counts: Tensor = aten.convolution_backward(
        ones, (signal != 0).to(signal.dtype), weight, None, *how
    )[1]
    return counts > 0.5


def _inside(signal: Tensor, weight: Tensor, operation: Operation) -> Tensor:
    r"""(\*kernel): which taps never read padding."""
    kernel = weight.shape[2:]
    taps = torch.eye(kernel.numel(), dtype=signal.dtype, device=signal.device).view(-1, 1, *kernel)
    found = aten.convolution(
        signal.new_ones(1, 1, *signal.shape[2:]), taps, None, *operation.args[3:9]
    )
    return (found > 0.5).flatten(2).all(2).view(kernel)
