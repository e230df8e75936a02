"""Sizes: what every network checks before it builds anything."""

from __future__ import annotations

from torch import nn

__all__ = ["check_sizes", "scaled"]


def check_sizes(network: nn.Module, **sizes: int) -> None:
    """Refuse a size that no layer can have.

    Raises:
        ValueError: naming the network, the argument and its value, if it is less than 1.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{type(network).__name__}: {name}={size} must be at least 1")


def scaled(size: int, factor: float) -> int:
    """A number of channels times a factor, a whole one and at least 1."""
    return max(1, round(size * factor))
