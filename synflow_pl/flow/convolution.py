"""Convolution of one signal at few positions: a matrix product.

Deep in a network a kernel of a million entries meets a signal of two by two positions. A round then costs what it takes to read the
kernel twice and to write its gradient once; torch's convolution takes several times that, since it works along the positions. Written
as a product with the patches in rows, (positions, patch) times (patch, units), each of the three passes runs through memory in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear, unfold

__all__ = ["convolve"]

# Measured with 3x3 kernels of 512 by 512: 4 positions in two fifths of the time, 16 in the same, and with fewer units in more.
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
    """``aten.convolution``, argument for argument, of signals without a bias."""
    plain = signal.dim() == 4 and len(signal) == 1 and not transposed and groups == 1
    if plain:
        kernel = weight.shape[2:]
        size = [_positions(signal.shape[2 + d], kernel[d], stride[d], padding[d], dilation[d]) for d in (0, 1)]
        if size[0] * size[1] <= _FEW:
            patches = unfold(signal, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))[0].t().contiguous()
            return linear(patches, weight.flatten(1)).t().reshape(1, -1, *size)
    return torch.ops.aten.convolution(signal, weight, None, stride, padding, dilation, transposed, output_padding, groups)


def _positions(length: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
