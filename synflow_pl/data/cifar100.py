"""CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 100 classes."""

from __future__ import annotations

from torchvision import datasets

from synflow_pl.data.cifar10 import CIFAR10

__all__ = ["CIFAR100"]


class CIFAR100(CIFAR10):
    """CIFAR-100: photographs, 32x32 colour, 100 classes; 169 MB to download.

    Training images are cropped and flipped at random as for CIFAR-10. The arguments are those of
    :class:`ImageDataModule`.

    Example:
        >>> data = CIFAR100(batch_size=256)
        >>> data.input_shape, data.num_classes
        ((3, 32, 32), 100)
    """

    num_classes = 100
    mean = (0.507, 0.487, 0.441)
    std = (0.267, 0.256, 0.276)
    origin = datasets.CIFAR100
    label_key = b"fine_labels"
