"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torchvision import datasets

from synflow_pl.data.cifar_pickle import open_pickled
from synflow_pl.data.datamodule import ImageDataModule
from synflow_pl.data.downloads import check_md5, fetch, unpack

__all__ = ["CIFAR10"]


class CIFAR10(ImageDataModule):
    """CIFAR-10: photographs, 32x32 colour, 10 classes; 170 MB to download.

    Training images are cropped and flipped at random as in Tanaka et al. 2020. The arguments are
    those of :class:`ImageDataModule`.

    Example:
        >>> data = CIFAR10(batch_size=256, val_size=5000)
        >>> data.input_shape, data.num_classes
        ((3, 32, 32), 10)
    """

    input_shape = (3, 32, 32)
    num_classes = 10
    mean: ClassVar[tuple[float, ...]] = (0.491, 0.482, 0.447)
    std: ClassVar[tuple[float, ...]] = (0.247, 0.243, 0.262)
    crop_padding = 4

    origin: type[datasets.CIFAR10] = datasets.CIFAR10
    """Class of torchvision that has the address, the names of the files and their checksums."""
    label_key: ClassVar[bytes] = b"labels"

    @property
    def _folder(self) -> Path:
        return self.data_dir / self.origin.base_folder

    def prepare_data(self) -> None:
        """Download and unpack the data set if its folder does not exist, and check the files."""
        if not self._folder.exists():
            archive = self.data_dir / self.origin.filename
            fetch([self.origin.url], archive, self.origin.tgz_md5)
            unpack(archive, self._folder)
        for name, md5 in [*self.origin.train_list, *self.origin.test_list]:
            check_md5(self._folder / name, md5)

    def images(self, train: bool) -> tuple[Tensor, Tensor]:
        files = [
            self._folder / name
            for name, _ in (self.origin.train_list if train else self.origin.test_list)
        ]
        parts = [
            open_pickled(file, self.input_shape, self.label_key, self.num_classes) for file in files
        ]
        labels = torch.cat([part.labels for part in parts])
        images = torch.empty(len(labels), *self.input_shape, dtype=torch.uint8)
        for part, place in zip(
            parts, images.split([len(part.labels) for part in parts]), strict=True
        ):
            part.read_into(place)
        return images, labels
