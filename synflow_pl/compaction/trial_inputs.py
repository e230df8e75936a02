"""Inputs on which the outputs of two networks are compared: the example, and noise like it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from synflow_pl.graph.example_inputs import Inputs, as_inputs

__all__ = ["candidates", "widened_dtype"]


def candidates(inputs: tuple[Tensor, ...], count: int = 2) -> Iterator[Inputs]:
    """Yield the example and inputs of noise of the same dtypes.

    The noise has ``count`` times the example's size along the first dimension, then the example's
    size, then the example's size with the example's integers. Integers may be indices, classes or
    steps, so noise of integers is the example's integers in random order.

    Args:
        inputs: Example of each input.
        count: Number of examples that the first input of noise concatenates.
    """
    example = as_inputs(inputs)
    yield example
    with torch.random.fork_rng():
        if all(tensor.dim() for tensor in inputs):
            yield example.replaced(
                torch.cat([_noise(tensor) for _ in range(count)]) for tensor in inputs
            )
        yield example.replaced(map(_noise, inputs))
        yield example.replaced(
            _noise(tensor) if tensor.is_floating_point() else tensor for tensor in inputs
        )


def _noise(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() or tensor.is_complex():
        return torch.randn_like(tensor, dtype=widened_dtype(tensor.dtype, torch.float64))
    return tensor.flatten()[torch.randperm(tensor.numel(), device=tensor.device)].view_as(tensor)


def widened_dtype(dtype: torch.dtype, floating: torch.dtype | None) -> torch.dtype:
    """Return the dtype for an input: ``floating`` or its complex counterpart.

    Integers and booleans keep their dtype, and so do all tensors if ``floating`` is ``None``.

    Args:
        dtype: Dtype of the example.
        floating: Precision of the comparison.
    """
    if floating is None or not (dtype.is_floating_point or dtype.is_complex):
        return dtype
    return floating.to_complex() if dtype.is_complex else floating
