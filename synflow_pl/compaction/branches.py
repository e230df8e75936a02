"""Branches: operations by which a forward pass may depend on the values of tensors in Python.

``if y.max() > 10``, a loop until a tensor is small, ``y[mask]`` and ``mask.nonzero()`` run other
operations on other values, or give tensors of other sizes. A recording holds one branch, and what
the others need cannot be known from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Conversions", "decisive"]

_COMPARED = frozenset(("equal", "allclose", "is_nonzero"))


def decisive(target: Any, args: tuple[Any, ...], is_mask: Callable[[Any], bool]) -> tuple[Any, ...]:
    """Return the arguments whose values decide what Python sees of the result: a number, or a
    tensor's size.

    Args:
        target: An ATen operation.
        args: Its positional arguments.
        is_mask: Whether an argument is a tensor of booleans or bytes.

    Returns:
        The arguments, empty for an operation whose result Python cannot branch on.
    """
    name = target._schema.name.split("::")[1]
    if (
        torch.Tag.data_dependent_output not in target.tags
        and torch.Tag.dynamic_output_shape not in target.tags
    ):
        return args if name in _COMPARED else ()
    if name == "index":  # whole numbers as indices give a known size, masks do not
        return tuple(index for index in args[1] if is_mask(index))
    if name in ("masked_select", "repeat_interleave"):
        return (args[-1] if name == "masked_select" else args[0],)
    return args


class Conversions(TorchFunctionMode):
    """Notes the conversions of tensors to Python lists and NumPy arrays, which are no ATen
    operations.

    Attributes:
        called: The first method that was called, such as ``Tensor.tolist``, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.called: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CONVERSIONS:
            self.called = self.called or f"Tensor.{func.__name__}"
        return func(*args, **(kwargs or {}))


_CONVERSIONS = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__)
