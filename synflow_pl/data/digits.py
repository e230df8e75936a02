"""Digits: real MNIST images that ship inside the package, for the demo and the tests. Licence and origin: DIGITS.md."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from synflow_pl.data.images import Images

__all__ = ["Digits"]


class _Pictures(Dataset[Any]):
    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Any) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        image = Image.fromarray(self.images[index])
        return self.transform(image) if self.transform is not None else image, int(self.labels[index])


class Digits(Images):
    """5,000 training and 1,000 test images of MNIST, 500 and 100 of each digit, 28x28 grey; nothing to download."""

    input_shape = (1, 28, 28)
    num_classes = 10
    mean = (0.1307,)
    std = (0.3081,)

    def dataset(self, train: bool, transform: Any) -> Dataset[tuple[Tensor, int]]:
        part = "train" if train else "test"
        with as_file(files("synflow_pl.data") / "digits.npz") as path, np.load(path, allow_pickle=False) as archive:
            return _Pictures(archive[f"{part}_images"], archive[f"{part}_labels"], transform)
