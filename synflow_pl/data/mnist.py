"""MNIST (LeCun et al. 1998): 60,000 handwritten digits to train on, 10,000 to test."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets

from synflow_pl.data.images import Images

__all__ = ["MNIST"]


class MNIST(Images):
    """Handwritten digits, 28x28 grey, 10 classes; 12 MB to download. No augmentation, as in Tanaka et al. 2020."""

    input_shape = (1, 28, 28)
    num_classes = 10
    mean = (0.1307,)
    std = (0.3081,)

    def prepare_data(self) -> None:
        """Download what is not there yet; checksums are torchvision's."""
        datasets.MNIST(self.data_dir, train=True, download=True)
        datasets.MNIST(self.data_dir, train=False, download=True)

    def dataset(self, train: bool, transform: Any) -> Dataset[tuple[Tensor, int]]:
        return datasets.MNIST(self.data_dir, train=train, transform=transform)
