"""Check that the images and labels of a data set agree with its class attributes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["check_images", "check_labels", "check_sample"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_images(
    returned: Any, source: str, shape: tuple[int, int, int], num_classes: int
) -> tuple[Tensor, Tensor]:
    """Check images and labels that are held in memory.

    Args:
        returned: Pair of images, uint8 (N, C, H, W), and labels, integers (N,) in [0,
            ``num_classes``).
        source: Expression that returned them, as messages name it.
        shape: Shape (C, H, W) of each image.
        num_classes: Number of classes.

    Returns:
        The images, and the labels as int64 (N,).

    Raises:
        ValueError: If the images or labels have another type, shape or range.
    """
    if not (
        isinstance(returned, (tuple, list))
        and len(returned) == 2
        and all(isinstance(part, Tensor) for part in returned)
    ):
        parts = (
            ", ".join(type(part).__name__ for part in returned)
            if isinstance(returned, (tuple, list))
            else type(returned).__name__
        )
        raise ValueError(
            f"{source} returned {parts or 'nothing'}, expected a tuple of two tensors, images and"
            " labels"
        )
    images, labels = returned
    if images.dtype != torch.uint8:
        raise ValueError(
            f"{source} returned images of {images.dtype}, expected torch.uint8 from 0 to 255;"
            " convert pixels in [0, 1] by"
            " (255 * images).round().to(torch.uint8)"
        )
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(shape):
        raise ValueError(
            f"{source} returned images of shape {tuple(images.shape)}, expected (N,"
            f" {', '.join(map(str, shape))}) as input_shape says"
        )
    return images, check_labels(labels, source, len(images), num_classes)


def check_labels(labels: Any, source: str, count: int, num_classes: int) -> Tensor:
    """Check the labels of a data set.

    Args:
        labels: Integers (N,) in [0, ``num_classes``), a tensor, array or list.
        source: Expression that returned them, as messages name it.
        count: Number of images.
        num_classes: Number of classes.

    Returns:
        The labels as int64 (N,).

    Raises:
        ValueError: If the labels have another type, shape or range, or there are none.
    """
    if labels is None:
        raise ValueError(
            f"{source} has no labels, expected an attribute labels, a tensor of int64 with one"
            " label for each image"
        )
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{source} has labels of type {type(labels).__name__}, expected a tensor of int64:"
            f" {error}"
        ) from error
    if labels.dtype not in _INTEGERS:
        raise ValueError(
            f"{source} has labels of {labels.dtype}, expected torch.int64 from 0 to"
            f" {num_classes - 1}"
        )
    if labels.ndim != 1 or len(labels) != count:
        raise ValueError(
            f"{source} has {count} images and labels of shape {tuple(labels.shape)}, expected the"
            f" shape ({count},), one label for each"
            " image"
        )
    if not count:
        raise ValueError(f"{source} has no images, expected at least 1")
    labels = labels.long()
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        index = int(wrong[0])
        also = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(
            f"{source} has label {int(labels[index])} for image {index}{also}, expected 0 to"
            f" {num_classes - 1} as num_classes"
            f" {num_classes} says"
        )
    return labels


def check_sample(sample: Any, source: str, shape: tuple[int, int, int], label: int) -> None:
    """Check one sample of a data set whose images are transformed one by one.

    Args:
        sample: Pair of a normalised image, floating point (C, H, W), and its label, an integer.
        source: Expression that returned it, as messages name it.
        shape: Shape (C, H, W) of each image.
        label: Label that the data set lists for the sample.

    Raises:
        ValueError: If the sample has another type, shape or label.
    """
    if not (
        isinstance(sample, (tuple, list)) and len(sample) == 2 and isinstance(sample[0], Tensor)
    ):
        raise ValueError(
            f"{source}[0] is a {type(sample).__name__}, expected a tuple of a transformed image (a"
            " tensor) and a label"
        )
    image, own = sample
    if not image.is_floating_point() or tuple(image.shape) != tuple(shape):
        raise ValueError(
            f"{source}[0] has an image of {image.dtype} in the shape {tuple(image.shape)},"
            " expected floating point in the shape"
            f" {tuple(shape)} as input_shape says; apply the transform that dataset() is given"
        )
    if int(own) != label:
        raise ValueError(
            f"{source}[0] has the label {int(own)}, expected {label} as its labels say"
        )
