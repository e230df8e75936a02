"""Images: the LightningDataModule that every image data set here is one of."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

__all__ = ["Images", "default_data_dir"]


def default_data_dir() -> Path:
    """Where data sets lie unless told otherwise: ``$SYNFLOW_DATA``, else ``~/.cache/synflow_pl``."""
    return Path(os.environ.get("SYNFLOW_DATA") or Path.home() / ".cache" / "synflow_pl")


class Images(LightningDataModule, ABC):
    """Labelled images: downloaded in ``prepare_data``, a validation split held out by seed, the test set met only at ``test``.

    A subclass names its shape, classes, normalisation and augmentation, and says where its images come from.

    Args:
        data_dir: folder of the files; by default ``$SYNFLOW_DATA``, else ``~/.cache/synflow_pl``.
        batch_size: images per training step over all devices together, at least 1; must divide by their number.
        val_size: training images held out for validation, at least 0; ``None`` is a tenth of them.
        seed: of the split.
        num_workers: processes that load images, per device; 0 loads them in the training process.
        augment: random crops and flips of training images, where the data set's paper has them.
        validate_on_test: validate on the test set, as some papers did; nothing is held out then. Warns.
    """

    input_shape: ClassVar[tuple[int, int, int]]
    """(C, H, W)."""
    num_classes: ClassVar[int]
    mean: ClassVar[tuple[float, ...]]
    """Of each channel, for pixels in [0, 1]."""
    std: ClassVar[tuple[float, ...]]
    crop_padding: ClassVar[int | None] = None
    """Pixels of zeros around an image before a random crop to its size, and flips; ``None``: no augmentation."""

    def __init__(
        self,
        data_dir: str | None = None,
        batch_size: int = 128,
        val_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        augment: bool = True,
        validate_on_test: bool = False,
    ) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("val_size", val_size or 0, 0), ("num_workers", num_workers, 0)):
            if value < least:
                raise ValueError(f"{name}: {value} must be at least {least}")
        self.data_dir = Path(data_dir).expanduser() if data_dir is not None else default_data_dir()
        self.batch_size = batch_size
        self.val_size = val_size
        self.seed = seed
        self.num_workers = num_workers
        self.augment = augment
        self.validate_on_test = validate_on_test
        self._sets: dict[str, Dataset[tuple[Tensor, int]]] = {}

    @abstractmethod
    def dataset(self, train: bool, transform: Any) -> Dataset[tuple[Tensor, int]]:
        """The training or test images, each passed through ``transform``; reads, never downloads."""

    @property
    def evaluation_transform(self) -> transforms.Compose:
        """Pixels to normalised float tensors."""
        return transforms.Compose([transforms.ToTensor(), transforms.Normalize(self.mean, self.std)])

    @property
    def training_transform(self) -> transforms.Compose:
        """The same, after a random crop and flip where the data set has them."""
        if self.crop_padding is None or not self.augment:
            return self.evaluation_transform
        random = [transforms.RandomCrop(self.input_shape[1:], padding=self.crop_padding), transforms.RandomHorizontalFlip()]
        return transforms.Compose([*random, *self.evaluation_transform.transforms])

    def setup(self, stage: str) -> None:
        """Open what ``stage`` needs, and nothing else: the test set only for ``test`` and ``predict``."""
        if stage not in ("fit", "validate"):
            self._sets["test"] = self.dataset(False, self.evaluation_transform)
            return
        images = self.dataset(True, self.training_transform)
        held_out, rest = self._split(len(images))  # type: ignore[arg-type]
        self._sets["train"] = Subset(images, rest)
        if self.validate_on_test:
            warnings.warn(
                "validate_on_test: the validation numbers of this run are test numbers; choose nothing by them.", stacklevel=2
            )
            self._sets["val"] = self.dataset(False, self.evaluation_transform)
        elif held_out:
            self._sets["val"] = Subset(self.dataset(True, self.evaluation_transform), held_out)

    def _split(self, count: int) -> tuple[list[int], list[int]]:
        """Indices held out for validation, and the rest."""
        size = 0 if self.validate_on_test else count // 10 if self.val_size is None else self.val_size
        if size >= count:
            raise ValueError(f"val_size: {size} leaves none of the {count} training images to train on")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed)).tolist()
        return sorted(order[:size]), sorted(order[size:])

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches; a last batch that is not full is kept."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The held-out images in order; none if ``val_size`` is 0."""
        return self._loader("val") if "val" in self._sets else []

    def test_dataloader(self) -> DataLoader[Any]:
        """The test images in order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test images in order."""
        return self._loader("test")

    def _loader(self, name: str, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(
            self._sets[name],
            batch_size=self._per_device(),
            shuffle=shuffle,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    def _per_device(self) -> int:
        devices = self.trainer.world_size if self.trainer is not None else 1
        if self.batch_size % devices:
            raise ValueError(f"batch_size: {self.batch_size} images cannot be shared evenly by {devices} devices; choose a multiple")
        return self.batch_size // devices
