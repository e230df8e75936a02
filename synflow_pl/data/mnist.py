"""MNIST (LeCun et al. 1998): 60,000 handwritten digits to train on, 10,000 to test."""

from __future__ import annotations

from torch import Tensor
from torchvision import datasets

from synflow_pl.data.idx import read_idx
from synflow_pl.data.images import Images

__all__ = ["MNIST"]


class MNIST(Images):
    """Handwritten digits, 28x28 grey, 10 classes; 12 MB to download. No augmentation, as in Tanaka et al. 2020."""

    input_shape = (1, 28, 28)
    num_classes = 10
    mean = (0.1307,)
    std = (0.3081,)

    origin: type[datasets.MNIST] = datasets.MNIST
    """The class of torchvision that knows mirrors and checksums; the files lie where it would put them."""

    def prepare_data(self) -> None:
        """Download what is not there yet; checksums are torchvision's."""
        self.origin(self.data_dir, train=True, download=True)

    def images(self, train: bool) -> tuple[Tensor, Tensor]:
        part = self.data_dir / self.origin.__name__ / "raw" / ("train" if train else "t10k")
        images = read_idx(part.with_name(f"{part.name}-images-idx3-ubyte"), axes=3)
        labels = read_idx(part.with_name(f"{part.name}-labels-idx1-ubyte"), axes=1)
        if len(images) != len(labels):
            raise ValueError(f"{str(part)!r}-*: there are {len(images)} images and {len(labels)} labels; delete both files")
        return images.unsqueeze(1), labels.long()
