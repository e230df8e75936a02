"""Fashion-MNIST (Xiao et al. 2017): 60,000 pictures of clothes to train on, 10,000 to test."""

from __future__ import annotations

from torchvision import datasets

from synflow_pl.data.mnist import MNIST

__all__ = ["FashionMNIST"]


class FashionMNIST(MNIST):
    """Pieces of clothing, 28x28 grey, 10 classes; 31 MB to download. In MNIST's own format, and as
    little augmented.
    """

    mean = (0.2860,)
    std = (0.3530,)
    origin = datasets.FashionMNIST
