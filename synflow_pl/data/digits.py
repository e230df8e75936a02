"""Digits: real MNIST images that ship inside the package, for the demo and the tests. Licence and
origin: DIGITS.md.
"""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
import torch
from torch import Tensor

from synflow_pl.data.datamodule import ImageDataModule

__all__ = ["Digits"]


class Digits(ImageDataModule):
    """5,000 training and 1,000 test images of MNIST, 500 and 100 of each digit, 28x28 grey; nothing
    to download.
    """

    input_shape = (1, 28, 28)
    num_classes = 10
    mean = (0.1307,)
    std = (0.3081,)

    def images(self, train: bool) -> tuple[Tensor, Tensor]:
        part = "train" if train else "test"
        with (
            as_file(files("synflow_pl.data") / "digits.npz") as path,
            np.load(path, allow_pickle=False) as archive,
        ):
            return torch.from_numpy(archive[f"{part}_images"]).unsqueeze(1), torch.from_numpy(
                archive[f"{part}_labels"]
            )
