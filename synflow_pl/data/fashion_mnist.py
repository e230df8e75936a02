"""Fashion-MNIST (Xiao et al. 2017): 60,000 training and 10,000 test images of clothes."""

from __future__ import annotations

from torchvision import datasets

from synflow_pl.data.mnist import MNIST

__all__ = ["FashionMNIST"]


class FashionMNIST(MNIST):
    """Fashion-MNIST: clothes, 28x28 grey, 10 classes; 31 MB to download.

    The files are in MNIST's format, and there is no augmentation either. The arguments are those of
    :class:`ImageDataModule`.

    Example:
        >>> data = FashionMNIST(batch_size=64)
        >>> data.input_shape, data.num_classes
        ((1, 28, 28), 10)
    """

    mean = (0.2860,)
    std = (0.3530,)
    origin = datasets.FashionMNIST
