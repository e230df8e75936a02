"""MNIST (LeCun et al. 1998): 60,000 training and 10,000 test images of handwritten digits."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torchvision import datasets

from synflow_pl.data.datamodule import ImageDataModule
from synflow_pl.data.downloads import fetch, gunzip
from synflow_pl.data.idx import read_idx

__all__ = ["MNIST"]


class MNIST(ImageDataModule):
    """MNIST: handwritten digits, 28x28 grey, 10 classes; 12 MB to download.

    There is no augmentation, as in Tanaka et al. 2020. The arguments are those of
    :class:`ImageDataModule`.

    Example:
        >>> data = MNIST(batch_size=64, val_size=5000)
        >>> data.input_shape, data.num_classes
        ((1, 28, 28), 10)
    """

    input_shape = (1, 28, 28)
    num_classes = 10
    mean = (0.1307,)
    std = (0.3081,)

    origin: type[datasets.MNIST] = datasets.MNIST
    """Class of torchvision that has the addresses, the checksums and the name of the folder."""

    @property
    def _folder(self) -> Path:
        return self.data_dir / self.origin.__name__ / "raw"

    def prepare_data(self) -> None:
        """Download and decompress the files that do not exist."""
        for name, md5 in self.origin.resources:
            archive = self._folder / name
            if not archive.with_suffix("").exists():
                fetch([mirror + name for mirror in self.origin.mirrors], archive, md5)
                gunzip(archive, archive.with_suffix(""))

    def images(self, train: bool) -> tuple[Tensor, Tensor]:
        part = "train" if train else "t10k"
        images = read_idx(self._folder / f"{part}-images-idx3-ubyte", axes=3)
        labels = read_idx(self._folder / f"{part}-labels-idx1-ubyte", axes=1)
        if len(images) != len(labels):
            raise ValueError(
                f"the files {part}-* in {str(self._folder)!r} hold {len(images)} images and"
                f" {len(labels)} labels; delete them, and they"
                " will be downloaded again"
            )
        return images.unsqueeze(1), labels.long()
