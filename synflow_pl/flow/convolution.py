"""Matrix products and small convolutions that write the gradient of the weight to given memory.

Deep in a network, a kernel of a million entries is applied to a signal of two by two positions. A
round then costs two reads of the kernel and one write of its gradient; the convolution of PyTorch
takes several times that, since it vectorises over positions. As a product of patches in rows,
(positions, patch) times (patch, units), each of the three passes reads memory in order.

Allocating a gradient as large as the weights in every round costs more than computing it, since the
operating system zeroes each new page. A gradient can therefore reuse the memory of the last
round's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import fold, linear, unfold

__all__ = ["convolve", "multiply", "widened"]

# Measured with 3x3 kernels of 512 by 512: 4 positions take two fifths of the time of torch's
# convolution, 16 the same time, and with fewer units more.
_FEW = 8
# Up to this many positions, a product is as fast as torch's convolution, which cannot write its
# gradient to given memory.
_SOME = 64


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
    into: Tensor | None = None,
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
        into: Memory for the weight's gradient, in the weight's shape. Autograd returns the gradient
            in this tensor or in another one. If given, the result can be differentiated once.
    """
    plain = signal.dim() == 4 and len(signal) == 1 and not transposed and groups == 1
    if plain:
        kernel = weight.shape[2:]
        size = [
            _positions(signal.shape[2 + d], kernel[d], stride[d], padding[d], dilation[d])
            for d in (0, 1)
        ]
        if into is not None and size[0] * size[1] <= _SOME:
            return _Convolution.apply(
                signal,
                weight,
                into,
                size,
                (tuple(kernel), tuple(dilation), tuple(padding), tuple(stride)),
            )
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


def multiply(signal: Tensor, transposed: Tensor, into: Tensor) -> Tensor:
    """Compute ``signal @ transposed`` with the gradient of the weight written to given memory.

    Args:
        signal: Tensor of shape (N, inputs); for any other number of dimensions the gradient may be
            written elsewhere.
        transposed: View of a weight, of shape (inputs, units).
        into: Memory for the weight's gradient, of shape (units, inputs). The result can be
            differentiated once.
    """
    return (
        _Product.apply(signal, transposed, into)
        if signal.dim() == 2
        else torch.matmul(signal, transposed)
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        signal: Tensor,
        weight: Tensor,
        into: Tensor,
        size: list[int],
        geometry: tuple[Any, ...],
    ) -> Tensor:
        patches = unfold(signal, *geometry)[0]  # (patch, positions)
        if patches.shape[1] <= _FEW:
            patches = patches.t().contiguous().t()  # patches in rows
        context.save_for_backward(patches, weight)
        context.into, context.size, context.geometry = into, signal.shape[2:], geometry
        return torch.mm(patches.t(), weight.flatten(1).t()).t().reshape(1, -1, *size)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        patches, weight = context.saved_tensors
        by_unit = gradient[0].flatten(1)
        torch.mm(by_unit, patches.t(), out=context.into.flatten(1))
        back = None
        if context.needs_input_grad[0]:
            back = fold(
                torch.mm(by_unit.t(), weight.flatten(1)).t()[None], context.size, *context.geometry
            )
        return back, context.into, None, None, None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, signal: Tensor, transposed: Tensor, into: Tensor) -> Tensor:
        context.save_for_backward(signal, transposed)
        context.into = into
        return torch.mm(signal, transposed)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        signal, transposed = context.saved_tensors
        torch.mm(gradient.t(), signal, out=context.into)
        return (
            torch.mm(gradient, transposed.t()) if context.needs_input_grad[0] else None,
            context.into.t(),
            None,
        )


def _positions(length: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def widened(given: Any, spatial: int) -> list[int]:
    """Return a stride, padding or dilation as a list with one entry per spatial dimension."""
    values = list(given) if isinstance(given, (tuple, list)) else [given]
    return values * spatial if len(values) == 1 else values
