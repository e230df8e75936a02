"""Checks and scaling of the sizes of networks."""

from __future__ import annotations

from torch import nn

__all__ = ["check_sizes", "scaled"]


def check_sizes(network: nn.Module, **sizes: int) -> None:
    """Check that sizes are at least 1.

    Args:
        network: Network whose class the error message names.
        **sizes: Sizes, by the name of the argument.

    Raises:
        ValueError: If a size is less than 1.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{type(network).__name__}: {name}={size} must be at least 1")


def scaled(size: int, factor: float) -> int:
    """Return a number of channels times a factor, rounded to an integer of at least 1."""
    return max(1, round(size * factor))
