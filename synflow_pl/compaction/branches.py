"""Operations through which Python control flow may depend on the values of tensors.

``if y.max() > 10``, a loop until a tensor is small, ``y[mask]`` and ``mask.nonzero()`` run other
operations on other values, or return tensors of other sizes. A traced graph holds one branch, and
does not show which units the other branches need.
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
    """Return the arguments whose values determine a number or a tensor size that Python sees.

    Args:
        target: ATen operation.
        args: Positional arguments of the operation.
        is_mask: Function that returns whether an argument is a tensor of booleans or bytes.

    Returns:
        The arguments; empty for an operation whose result Python cannot branch on.
    """
    name = target._schema.name.split("::")[1]
    if (
        torch.Tag.data_dependent_output not in target.tags
        and torch.Tag.dynamic_output_shape not in target.tags
    ):
        return args if name in _COMPARED else ()
    if name == "index":  # integers as indices return a known size, masks do not
        return tuple(index for index in args[1] if is_mask(index))
    if name in ("masked_select", "repeat_interleave"):
        return (args[-1] if name == "masked_select" else args[0],)
    return args


class Conversions(TorchFunctionMode):
    """Record conversions of tensors to Python lists and NumPy arrays.

    These conversions are not ATen operations, so a traced graph does not contain them.

    Attributes:
        called: Name of the first method that was called, such as ``Tensor.tolist``, or ``None``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.called: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CONVERSIONS:
            self.called = self.called or f"Tensor.{func.__name__}"
        return func(*args, **(kwargs or {}))


_CONVERSIONS = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__)
