"""Fashion-MNIST (Xiao et al. 2017): 60,000 pictures of clothes to train on, 10,000 to test."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets

from synflow_pl.data.images import Images

__all__ = ["FashionMNIST"]


class FashionMNIST(Images):
    """Pieces of clothing, 28x28 grey, 10 classes; 31 MB to download. No augmentation, like MNIST."""

    input_shape = (1, 28, 28)
    num_classes = 10
    mean = (0.2860,)
    std = (0.3530,)

    def prepare_data(self) -> None:
        """Download what is not there yet; checksums are torchvision's."""
        datasets.FashionMNIST(self.data_dir, train=True, download=True)
        datasets.FashionMNIST(self.data_dir, train=False, download=True)

    def dataset(self, train: bool, transform: Any) -> Dataset[tuple[Tensor, int]]:
        return datasets.FashionMNIST(self.data_dir, train=train, transform=transform)
