"""Convolutions at few positions as matrix products.

Deep in a network, a kernel of a million entries is applied to a signal of two by two positions. A
round then costs two reads of the kernel and one write of its gradient; the convolution of PyTorch
takes several times that, since it vectorises over positions, and copies the kernel. As a product of
patches in rows, (positions, patch) times (patch, units), each of the three passes reads memory in
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, unfold

__all__ = ["convolve", "widened"]

# Measured with 3x3 kernels of 512 by 512: 4 positions take two fifths of the time of torch's
# convolution, 16 the same time, and with fewer units more.
_FEW = 8


def convolve(
    signal: Tensor,
    weight: Tensor,
    bias: None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """Compute ``aten.convolution`` without a bias; the arguments are the same.

    Args:
        signal: Input of the convolution.
        weight: Kernel of the convolution.
        bias: ``None``.
        stride: Stride.
        padding: Padding.
        dilation: Dilation.
        transposed: Whether the convolution is transposed.
        output_padding: Output padding of a transposed convolution.
        groups: Number of groups.
    """
    plain = signal.dim() == 4 and len(signal) == 1 and not transposed and groups == 1
    if plain:
        kernel = weight.shape[2:]
        size = [
            _positions(signal.shape[2 + d], kernel[d], stride[d], padding[d], dilation[d])
            for d in (0, 1)
        ]
        if size[0] * size[1] <= _FEW:
            patches = (
                unfold(signal, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))[0]
                .t()
                .contiguous()
            )
            return linear(patches, weight.flatten(1)).t().reshape(1, -1, *size)
    return torch.ops.aten.convolution(
        signal, weight, None, stride, padding, dilation, transposed, output_padding, groups
    )


def _positions(length: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def widened(given: Any, spatial: int) -> list[int]:
    """Return a stride, padding or dilation as a list with one entry per spatial dimension."""
    values = list(given) if isinstance(given, (tuple, list)) else [given]
    return values * spatial if len(values) == 1 else values
