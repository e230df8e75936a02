"""Choose the training images that data-driven pruners score on."""

from __future__ import annotations

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

__all__ = ["choose_images"]

_IMAGES_PER_CLASS = 10
"""Default number of images of each class that pruning scores on."""


def choose_images(
    images: Tensor, labels: Tensor, num_classes: int, images_per_class: int | None
) -> Tensor:
    """Choose the first images of each class, and order them so that classes alternate.

    Args:
        images: Indices of images, int64 (N,).
        labels: Labels of all images that ``images`` indexes, int64.
        num_classes: Number of classes.
        images_per_class: Number of images of each class; ``None`` is 10, or all images of a class
            that has fewer, with a warning.

    Returns:
        Indices, int64 (at most N,): the first image of each class by label, then the second of each
        class, and so on.

    Raises:
        ValueError: If a class has fewer images than the number that was given.
    """
    count = _IMAGES_PER_CLASS if images_per_class is None else images_per_class
    available = labels[images].bincount(minlength=num_classes)
    _check_classes(available, count, given=images_per_class is not None)
    by_class = images[labels[images].argsort(stable=True)]
    sizes = labels[by_class].unique_consecutive(return_counts=True)[1]
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    index_in_class = torch.arange(len(by_class)) - starts
    chosen = index_in_class < count
    return by_class[chosen][index_in_class[chosen].argsort(stable=True)]


def _check_classes(available: Tensor, count: int, given: bool) -> None:
    """Raise an error or warn if a class has fewer than ``count`` training images.

    Args:
        available: Number of training images of each class, int64 (num_classes,).
        count: Number of images that are needed of each class.
        given: Whether the user gave the number: an error instead of a warning.
    """
    small = (available < count).nonzero().flatten().tolist()
    if not small:
        return
    first, least = small[0], int(available.min())
    has = (
        f"images_per_class: class {first} has {int(available[first])} training images, not {count}"
    )
    also = f" (and {len(small) - 1} more classes have too few)" if len(small) > 1 else ""
    instead = (
        "leave --data.images_per_class out, which takes all images of a class that has too few"
    )
    if given:
        raise ValueError(
            f"{has}; ask for fewer (all classes have {least}), or {instead}"
            if least
            else f"{has}; {instead}"
        )
    equal = f"; --data.images_per_class {least} takes equally many of each class" if least else ""
    rank_zero_warn(f"{has}{also}, so pruning scores on all that there are{equal}")
