"""CIFAR-10 (Krizhevsky 2009): 50,000 small photographs to train on, 10,000 to test."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets

from synflow_pl.data.images import Images

__all__ = ["CIFAR10"]


class CIFAR10(Images):
    """Photographs, 32x32 colour, 10 classes; 170 MB to download. Crops and flips as in Tanaka et al. 2020."""

    input_shape = (3, 32, 32)
    num_classes = 10
    mean = (0.491, 0.482, 0.447)
    std = (0.247, 0.243, 0.262)
    crop_padding = 4

    def prepare_data(self) -> None:
        """Download what is not there yet; checksums are torchvision's."""
        # The archive is not kept by everyone; the extracted files are what counts, and torchvision asks for no more.
        datasets.CIFAR10(str(self.data_dir), train=True, download=True)

    def dataset(self, train: bool, transform: Any) -> Dataset[tuple[Tensor, int]]:
        return datasets.CIFAR10(str(self.data_dir), train=train, transform=transform)
