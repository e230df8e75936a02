"""A subset of MNIST that is part of the package, for the demo and the tests.

DIGITS.md in this folder gives its licence and origin.
"""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
import torch
from torch import Tensor

from synflow_pl.data.datamodule import ImageDataModule

__all__ = ["Digits"]


class Digits(ImageDataModule):
    """6,000 images of MNIST, 28x28 grey, 10 classes; nothing to download.

    There are 500 training and 100 test images of each digit. The arguments are those of
    :class:`ImageDataModule`.

    Example:
        >>> data = Digits(batch_size=64)
        >>> data.setup("fit")
        >>> len(data.split["train"]), len(data.split["val"])
        (4500, 500)
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
