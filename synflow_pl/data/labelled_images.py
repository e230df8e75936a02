"""Definition of a data set of labelled images: shape, classes, normalisation and files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from synflow_pl.data.torchvision_loader import TensorImages
from synflow_pl.data.validity import check_images, check_labels, check_sample

__all__ = ["LabelledImages"]


class LabelledImages(ABC):
    """Base class for the definition of a data set, from which images are read and checked.

    A subclass defines the shape, the classes, the normalisation and the augmentation of its images
    as class attributes, and reads them in :meth:`images`.

    Attributes:
        pipeline: ``"memory"`` or ``"torchvision"``, as in :class:`synflow_pl.data.ImageDataModule`.
    """

    input_shape: ClassVar[tuple[int, int, int]]
    """Shape (C, H, W) of an image."""
    num_classes: ClassVar[int]
    """Number of classes."""
    mean: ClassVar[tuple[float, ...]]
    """Mean of each channel, for pixels in [0, 1]."""
    std: ClassVar[tuple[float, ...]]
    """Standard deviation of each channel, for pixels in [0, 1]."""
    crop_padding: ClassVar[int | None] = None
    """Zero padding in pixels before a random crop to the size of the image, which is also flipped
    at random; ``None`` is no augmentation.
    """

    pipeline: str

    def __init__(self) -> None:
        super().__init__()
        self._in_memory_sets: dict[bool, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def images(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return all images and labels of the training or the test set.

        Implementations read files and never download any.

        Args:
            train: Whether to return the training set.

        Returns:
            Images, uint8 (N, C, H, W), and labels, integers (N,) in [0, ``num_classes``).
        """

    def dataset(self, train: bool, transform: Any) -> Dataset[tuple[Any, int]]:
        """Return the training or the test set as a data set for the pipeline ``"torchvision"``.

        Args:
            train: Whether to return the training set.
            transform: torchvision transform that each image is passed through.

        Returns:
            A data set of (image, label) pairs with an attribute ``labels``, integers (N,).
        """
        return TensorImages(*self._in_memory(train), transform)

    @property
    def evaluation_transform(self) -> transforms.Compose:
        """Transform of a PIL image to a normalised tensor."""
        return transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
        )

    @property
    def has_augmentation(self) -> bool:
        """Flag that says whether the data set defines an augmentation of training images."""
        return self.crop_padding is not None

    @property
    def training_transform(self) -> transforms.Compose:
        """Transform for training: random crop and flip if defined, then to a normalised tensor."""
        if self.crop_padding is None:
            return self.evaluation_transform
        random = [
            transforms.RandomCrop(self.input_shape[1:], padding=self.crop_padding),
            transforms.RandomHorizontalFlip(),
        ]
        return transforms.Compose([*random, *self.evaluation_transform.transforms])

    def _count(self, train: bool) -> int:
        """Open the training or the test set, and return its number of images."""
        if self.pipeline == "memory":
            return len(self._in_memory(train)[1])
        dataset, labels = self._dataset(train, self.evaluation_transform)
        with torch.random.fork_rng(devices=[]):
            check_sample(
                dataset[0],
                f"{type(self).__name__}.dataset(train={train})",
                self.input_shape,
                int(labels[0]),
            )
        return len(labels)

    def _in_memory(self, train: bool) -> tuple[Tensor, Tensor]:
        if train not in self._in_memory_sets:
            source = f"{type(self).__name__}.images(train={train})"
            self._in_memory_sets[train] = check_images(
                self.images(train), source, self.input_shape, self.num_classes
            )
        return self._in_memory_sets[train]

    def _dataset(self, train: bool, transform: Any) -> tuple[Dataset[tuple[Any, int]], Tensor]:
        """Return the data set for the pipeline ``"torchvision"`` and its labels, int64 (N,)."""
        dataset: Any = self.dataset(train, transform)
        source = f"{type(self).__name__}.dataset(train={train})"
        return dataset, check_labels(
            getattr(dataset, "labels", None), source, len(dataset), self.num_classes
        )
