"""CIFAR-10 (Krizhevsky 2009): 50,000 small photographs to train on, 10,000 to test."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
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

    origin: type[datasets.CIFAR10] = datasets.CIFAR10
    """The class of torchvision that knows the address, the names of the files and their checksums."""

    def prepare_data(self) -> None:
        """Download what is not there yet; checksums are torchvision's."""
        self.origin(str(self.data_dir), train=True, download=True)

    def images(self, train: bool) -> tuple[Tensor, Tensor]:
        files = [self.data_dir / self.origin.base_folder / name for name, _ in self._files(train)]
        parts = [_read(path, self.num_classes) for path in files]
        if len(parts) == 1:
            return parts[0]
        images = torch.cat([images for images, _ in parts])
        return images, torch.cat([labels for _, labels in parts])

    def _files(self, train: bool) -> list[Any]:
        return self.origin.train_list if train else self.origin.test_list


def _read(path: Path, classes: int) -> tuple[Tensor, Tensor]:
    with path.open("rb") as file:
        content = pickle.load(file, encoding="bytes")
    labels = content.get(b"labels", content.get(b"fine_labels"))
    return torch.from_numpy(np.array(content[b"data"])).view(-1, 3, 32, 32), torch.tensor(labels)
