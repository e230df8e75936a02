"""Example inputs: the tensors that a network is traced on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["example_of"]


def example_of(
    network: nn.Module,
    input_shape: Sequence[int] | None,
    example_input: Tensor | Sequence[Tensor] | None,
) -> tuple[Tensor, ...]:
    """Return example inputs for tracing: ones of ``input_shape``, or ``example_input``.

    Args:
        network: Network whose first floating-point parameter gives device and precision.
        input_shape: Shape without the batch dimension, such as (C, H, W), for a network with one
            input.
        example_input: Arguments of ``forward()`` with the batch dimension, by position: a tensor,
            or a tuple or list of tensors. It is given in place of ``input_shape`` and moved to the
            device of the network.

    Raises:
        TypeError: If ``example_input`` is or holds anything but tensors.
        ValueError: If neither or both are given, a size is not positive, or no parameter gives a
            precision.

    Example:
        >>> from torch import nn
        >>> from synflow_pl.flow import example_of
        >>> (images,) = example_of(nn.Conv2d(3, 8, 3), (3, 32, 32), None)
        >>> images.shape
        torch.Size([1, 3, 32, 32])
    """
    parameter = next(
        (parameter for parameter in network.parameters() if parameter.is_floating_point()), None
    )
    if parameter is None:
        raise ValueError(
            f"{type(network).__name__} has no parameter of real floating-point numbers, so there is"
            " nothing to prune"
        )
    if (input_shape is None) == (example_input is None):
        raise ValueError(
            "give either input_shape=(C, H, W) or example_input=, a tensor or a tuple of tensors"
            " with a batch dimension"
        )
    if input_shape is not None:
        if not isinstance(input_shape, Sequence) or not all(
            isinstance(size, int) and size > 0 for size in input_shape
        ):
            shown = tuple(input_shape) if isinstance(input_shape, Sequence) else input_shape
            raise ValueError(
                f"input_shape: {shown} must be positive whole numbers without the batch, such as"
                " (3, 32, 32)"
            )
        return (torch.ones(1, *input_shape, device=parameter.device, dtype=parameter.dtype),)
    inputs = tuple(example_input) if isinstance(example_input, (tuple, list)) else (example_input,)
    for index, tensor in enumerate(inputs):
        if not isinstance(tensor, Tensor):
            place = f"[{index}]" if isinstance(example_input, (tuple, list)) else ""
            kind = "None" if tensor is None else f"a {type(tensor).__name__}"
            raise TypeError(
                f"example_input{place}: expected a tensor, got {kind}; give one tensor, or a tuple"
                " of the tensors that forward() takes by position, and set everything else inside"
                " a module that wraps the network"
            )
        if tensor.is_meta:
            raise ValueError(
                "example_input: a tensor on the meta device has no values; give one on the"
                " network's device"
            )
    if not inputs:
        raise ValueError(
            "example_input: an empty tuple shows no input; give the tensors that forward() takes by"
            " position"
        )
    return tuple(
        tensor.detach().to(
            parameter.device, parameter.dtype if tensor.is_floating_point() else tensor.dtype
        )
        for tensor in inputs
    )
