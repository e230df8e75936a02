"""Sizes of outputs and differences between them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["output_gap", "output_size"]


def output_size(leaf: Any) -> float:
    """Return the largest absolute entry of a tensor; 0 if it has no rounding, like integers.

    Args:
        leaf: Tensor or other value in an output.
    """
    numbers = (
        isinstance(leaf, Tensor)
        and (leaf.is_floating_point() or leaf.is_complex())
        and leaf.numel()
    )
    return float(leaf.abs().nan_to_num(0, posinf=0).max()) if numbers else 0.0


def output_gap(expected: Any, actual: Any) -> float:
    """Return the largest difference between two outputs; infinite if types or shapes differ.

    Args:
        expected: Tensor or other value in the output of the whole network.
        actual: Value in the same place of the output of the smaller network.
    """
    if not isinstance(expected, Tensor) or not isinstance(actual, Tensor):
        if type(expected) is not type(actual):
            return float("inf")
        both_nan = expected != expected and actual != actual
        return 0.0 if both_nan or expected == actual else float("inf")
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return float("inf")
    same = (expected == actual) | ((expected != expected) & (actual != actual))
    if same.all():
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return float("inf")
    return float((expected - actual)[~same].abs().nan_to_num(float("inf")).max())
