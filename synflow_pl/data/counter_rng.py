"""Draws: random numbers that are a function of seed, epoch and image, so that ranks, workers and a
resumed run agree on them.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["draws", "permutation"]


def _signed(value: int) -> int:
    """The int64 that has the same lowest 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


# SplitMix64 (Steele, Lea & Flood 2014): its increment and its two multipliers.
_INCREMENT, _FIRST, _SECOND = map(
    _signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser. int64 wraps around in torch; the masks make its arithmetic shifts
    logical ones.
    """
    z = (z ^ (z >> 30 & 2**34 - 1)) * _FIRST
    z = (z ^ (z >> 27 & 2**37 - 1)) * _SECOND
    return z ^ (z >> 31 & 2**33 - 1)


def draws(seed: int, epoch: int, images: Tensor) -> Tensor:
    """A uniform number for each image, int64 in [0, 2**63), from a counter-based generator: there
    is no state to carry along.

    Args:
        seed: any integer.
        epoch: any integer.
        images: indices of images, int64 (N,).

    Returns:
        int64 (N,).
    """
    z = torch.zeros_like(images)
    for value in (_signed(seed), epoch, images):
        z = _mix((z ^ value) + _INCREMENT)
    return z & 2**63 - 1


def permutation(seed: int, epoch: int, count: int) -> Tensor:
    """An order of ``count`` images, int64 (count,), another in each epoch."""
    start = int(draws(seed, epoch, torch.tensor([-1])))  # no image has this index
    return torch.randperm(count, generator=torch.Generator().manual_seed(start))
