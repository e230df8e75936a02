"""Sizes: refused by name where they cannot be."""

from __future__ import annotations

__all__ = ["at_least_one"]


def at_least_one(network: str, **sizes: int) -> None:
    """Check that each size is at least 1.

    Args:
        network: name of the network that asks, for the message.
        sizes: by the name of the argument.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{network}: {name}={size} must be at least 1")
