"""CIFAR-100 (Krizhevsky 2009): 50,000 small photographs of 100 classes to train on, 10,000 to
test.
"""

from __future__ import annotations

from torchvision import datasets

from synflow_pl.data.cifar10 import CIFAR10

__all__ = ["CIFAR100"]


class CIFAR100(CIFAR10):
    """Photographs, 32x32 colour, 100 classes; 169 MB to download. Crops and flips as for
    CIFAR-10.
    """

    num_classes = 100
    mean = (0.507, 0.487, 0.441)
    std = (0.267, 0.256, 0.276)
    origin = datasets.CIFAR100
    label_key = b"fine_labels"
