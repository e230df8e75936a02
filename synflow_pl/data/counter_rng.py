"""Counter-based random numbers: functions of a seed, an epoch and an image, without a state.

Ranks, worker processes and a resumed run therefore agree on them.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["permutation", "random_numbers"]


def _signed(value: int) -> int:
    """Return the int64 with the same lowest 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


# Increment and multipliers of SplitMix64 (Steele, Lea & Flood 2014).
_INCREMENT, _FIRST, _SECOND = map(
    _signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def _mix(z: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser to int64 numbers.

    torch's int64 arithmetic wraps around; the masks turn its arithmetic shifts into logical ones.
    """
    z = (z ^ (z >> 30 & 2**34 - 1)) * _FIRST
    z = (z ^ (z >> 27 & 2**37 - 1)) * _SECOND
    return z ^ (z >> 31 & 2**33 - 1)


def random_numbers(seed: int, epoch: int, images: Tensor) -> Tensor:
    """Return a uniform random number for each image, as a function of seed, epoch and image.

    Args:
        seed: Any integer.
        epoch: Any integer.
        images: Indices of images, int64 (N,).

    Returns:
        Random numbers, int64 (N,), in [0, 2**63).
    """
    z = torch.zeros_like(images)
    for value in (_signed(seed), epoch, images):
        z = _mix((z ^ value) + _INCREMENT)
    return z & 2**63 - 1


def permutation(seed: int, epoch: int, count: int) -> Tensor:
    """Return a random order of images that is different in each epoch.

    Args:
        seed: Any integer.
        epoch: Any integer.
        count: Number of images.

    Returns:
        A permutation of 0 ... ``count`` - 1, int64 (count,).
    """
    start = int(random_numbers(seed, epoch, torch.tensor([-1])))  # no image has this index
    return torch.randperm(count, generator=torch.Generator().manual_seed(start))
