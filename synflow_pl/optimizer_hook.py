"""The hook that keeps removed weights at zero while an optimiser steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Hold", "hookable"]

# Attributes by which wrappers (of accelerate, Lightning, timm) hold their optimiser.
_WRAPPED = ("optimizer", "_optimizer", "_base_optimizer", "base_optimizer")
# Integer type of each element size in bytes.
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Hold:
    """Handle that keeps removed weights at zero while an optimiser steps.

    :meth:`synflow_pl.Masks.hold` creates it.

    Args:
        pairs: Parameters and their masks.
        optimizer: Optimiser of the parameters, or a wrapper of one, such as that of accelerate.

    Raises:
        TypeError: If it is neither.
    """

    def __init__(self, pairs: list[tuple[nn.Parameter, Tensor]], optimizer: Optimizer) -> None:
        self._parameters = [parameter for parameter, _ in pairs]
        # An integer per weight with all bits set or none. A bitwise AND gives +0.0 even after an
        # infinite update, where a multiplication by the mask would give -0.0 or NaN, and costs a
        # quarter of masked_fill_ on a CPU. The integers have the parameter's memory format, so that
        # both are traversed in the same order.
        self._bits = [
            torch.empty_like(parameter, dtype=_INTEGER[parameter.element_size()]).copy_(mask).neg_()
            for parameter, mask in pairs
        ]
        self._handle = hookable(optimizer).register_step_post_hook(lambda *_: self.zero())

    def zero(self) -> None:
        """Set every removed weight to zero."""
        _zero(self._parameters, self._bits)

    def mask_gradients(self) -> None:
        """Set the gradients of removed weights to zero.

        Operations that read across entries, such as a gradient norm, then see kept weights only.
        """
        pairs = [
            (p.grad, bits)
            for p, bits in zip(self._parameters, self._bits, strict=True)
            if p.grad is not None
        ]
        _zero([gradient for gradient, _ in pairs], [bits for _, bits in pairs])

    def remove(self) -> None:
        """Stop zeroing removed weights after each step of the optimiser."""
        self._handle.remove()


def hookable(optimizer: Any) -> Optimizer:
    """Return the optimiser whose step runs hooks: this one, or the one that it wraps."""
    inner = optimizer
    while not getattr(getattr(type(inner), "step", None), "hooked", False):
        held = getattr(inner, "__dict__", {})
        inner = next((held[name] for name in _WRAPPED if name in held), None)
        if inner is None:
            raise TypeError(
                f"optimizer: a {type(optimizer).__name__} is no torch.optim.Optimizer and wraps"
                " none; give the optimiser whose step() changes the weights"
            )
    return inner


@torch.no_grad()
def _zero(tensors: Sequence[Tensor], masks: list[Tensor]) -> None:
    """Set the entries of tensors to zero where the bits of a mask are zero, in place."""
    for tensor, bits in zip(tensors, masks, strict=True):
        moved = bits.to(tensor.device)
        if tensor.element_size() == bits.element_size():
            tensor.view(bits.dtype).bitwise_and_(moved)
        else:  # the network has been converted to another precision
            tensor.masked_fill_(moved == 0, 0)
