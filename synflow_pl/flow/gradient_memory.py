"""Memory of gradients: which memory can be used again, and gradients that share none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["as_shape", "separate"]


def as_shape(memory: Tensor, shape: torch.Size) -> Tensor | None:
    """Return the memory of a tensor as a contiguous tensor of this shape.

    Returns ``None`` if entries of the tensor overlap or have gaps between them. Autograd returns a
    gradient in the layout that its kernel wrote: channels-last for a convolution at few positions.
    """
    in_order = memory.permute(sorted(range(memory.dim()), key=memory.stride, reverse=True))
    return in_order.view(-1)[: shape.numel()].view(shape) if in_order.is_contiguous() else None


def separate(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return these gradients, each with memory of its own.

    The gradient of a sum is one expanded number, and two terms of a sum share their gradient.
    """
    taken: set[int] = set()
    separated = []
    for gradient in gradients:
        if gradient.data_ptr() in taken or as_shape(gradient, gradient.shape) is None:
            gradient = gradient.clone(memory_format=torch.contiguous_format)
        taken.add(gradient.data_ptr())
        separated.append(gradient)
    return separated
