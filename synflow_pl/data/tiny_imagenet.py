"""Tiny ImageNet (Stanford CS231N, 2015): 100,000 training and 10,000 labelled test images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from synflow_pl.data.datamodule import ImageDataModule
from synflow_pl.data.decode_cache import decode_cached
from synflow_pl.data.downloads import fetch, unpack
from synflow_pl.data.torchvision_loader import ImageFiles

__all__ = ["TinyImageNet"]


class TinyImageNet(ImageDataModule):
    """Tiny ImageNet: photographs, 64x64 colour, 200 classes; 248 MB to download.

    Training images are cropped and flipped at random as in Tanaka et al. 2020. The ``val`` images
    are the test set here, as in the papers, since the labels of the ``test`` images were never
    published. The pipeline ``"memory"`` decodes the files once, to a cache of 1.4 GB beside their
    folder. The arguments are those of :class:`ImageDataModule`.

    Example:
        >>> data = TinyImageNet(batch_size=256)
        >>> data.input_shape, data.num_classes
        ((3, 64, 64), 200)
    """

    input_shape = (3, 64, 64)
    num_classes = 200
    mean = (0.480, 0.448, 0.398)
    std = (0.277, 0.269, 0.282)
    crop_padding = 4

    url = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    md5 = "90528d7ca1a48142e341f4ef8d21d0de"

    @property
    def _folder(self) -> Path:
        return self.data_dir / "tiny-imagenet-200"

    def prepare_data(self) -> None:
        """Download and unpack the data set if its folder does not exist, and decode its images."""
        if not self._folder.exists():
            archive = self.data_dir / "tiny-imagenet-200.zip"
            fetch([self.url], archive, self.md5)
            unpack(archive, self._folder)
        for train in (True, False):
            if self.pipeline == "memory":
                self.images(train)
            else:
                self._files(train)

    def images(self, train: bool) -> tuple[Tensor, Tensor]:
        paths, labels = self._files(train)
        cache = self.data_dir / f"tiny-imagenet-200-{'train' if train else 'val'}"
        return decode_cached(paths, self.input_shape, cache), labels

    def dataset(self, train: bool, transform: Any) -> Dataset[tuple[Any, int]]:
        paths, labels = self._files(train)
        return ImageFiles(paths, labels, transform, channels=3)

    # -- files

    def _classes(self) -> dict[str, int]:
        """Return the label of each class: its index among the sorted names."""
        path = self._folder / "wnids.txt"
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no file {str(path)!r}; download the data set, or point --data.data_dir"
                " at it"
            )
        names = sorted(path.read_text().split())
        if len(set(names)) != self.num_classes:
            raise ValueError(
                f"{str(path)!r} names {len(set(names))} classes, expected {self.num_classes}"
            )
        return {name: label for label, name in enumerate(names)}

    def _files(self, train: bool) -> tuple[list[Path], Tensor]:
        """Return the paths of the images and their labels, int64 (N,).

        Training images are sorted by class and name, test images by name.
        """
        samples = self._train_files() if train else self._val_files()
        return [path for path, _ in samples], torch.tensor([label for _, label in samples])

    def _train_files(self) -> list[tuple[Path, int]]:
        samples = []
        for name, label in self._classes().items():
            folder = self._folder / "train" / name / "images"
            images = _images(folder)
            if not images:
                raise FileNotFoundError(
                    f"the class folder {str(folder)!r} is missing or empty; unpack the data set"
                    " again"
                )
            samples += [(path, label) for path in images]
        return samples

    def _val_files(self) -> list[tuple[Path, int]]:
        path = self._folder / "val" / "val_annotations.txt"
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {str(path)!r}; unpack the data set again")
        classes = self._classes()
        labels = {}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            image, name = [*line.split("\t"), ""][:2]
            if name not in classes:
                raise ValueError(
                    f"{str(path)!r} line {number}: {name!r} is not one of the {len(classes)}"
                    " classes in wnids.txt"
                )
            labels[image] = classes[name]
        images = _images(self._folder / "val" / "images")
        if odd := labels.keys() ^ {image.name for image in images}:
            raise ValueError(
                f"{str(path)!r} and the folder images beside it do not name the same files:"
                f" {min(odd)!r} is in one only; unpack the"
                " data set again"
            )
        return [(image, labels[image.name]) for image in images]


def _images(folder: Path) -> list[Path]:
    """Return the paths of the images in a folder, sorted; empty if there is no folder."""
    # os.listdir, since Path.glob takes seconds for a hundred thousand files.
    names = (
        sorted(name for name in os.listdir(folder) if name.endswith(".JPEG"))
        if folder.is_dir()
        else []
    )
    return [folder / name for name in names]
