"""ImageNet (Russakovsky et al. 2015, ILSVRC 2012): 1,281,167 photographs of 1,000 classes to train
on, 50,000 to test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS

from synflow_pl.data.datamodule import ImageDataModule
from synflow_pl.data.torchvision_loader import Files

__all__ = ["ImageNet"]

_NOT_HELD = (
    "pipeline: ImageNet does not fit in memory; leave it at torchvision, and give it num_workers"
)


class ImageNet(ImageDataModule):
    """Photographs at 224x224, 1,000 classes, from ``train/`` and ``val/`` with a folder for each
    class; nothing is downloaded.

    Its own ``val`` images are the test set here, since the labels of its ``test`` images were never
    published. Images are streamed: random crops resized to 224 and flips for training; else the
    shorter side resized to 256 and the centre cut out (He et al. 2016).

    Args:
        data_dir: folder that holds ``train/`` and ``val/``; by default ``$SYNFLOW_DATA``, else
            ``~/.cache/synflow_pl``.
        batch_size: images per training step over all devices together, at least 1; must divide by
            their number.
        val_size: training images held out for validation, at least 0; ``None`` is a tenth of them.
        seed: of the split, and with the run's own seed of the order, the augmentation and the
            pruning batches.
        pipeline: ``torchvision``; there is no other for images that do not fit in memory.
        num_workers: processes that load images, per device; 0 loads them in the training process.
        augment: random crops and flips of training images.
        validate_on_test: validate on the test set, as most papers did; nothing is held out then.
            Warns.
        predict_dir: folder of images of one's own for ``predict``, in place of the test set.
        images_per_class: Training images of each class that data-driven pruners score on, at least
            1, an error if a class has fewer; ``None`` takes 10, or all images of a class that has
            fewer, with a warning.
    """

    input_shape = (3, 224, 224)
    num_classes = 1000
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    has_augmentation = True

    def __init__(
        self,
        data_dir: str | None = None,
        batch_size: int = 256,
        val_size: int | None = None,
        seed: int = 0,
        pipeline: Literal["memory", "torchvision"] = "torchvision",
        num_workers: int = 8,
        augment: bool = True,
        validate_on_test: bool = False,
        predict_dir: str | None = None,
        images_per_class: int | None = None,
    ) -> None:
        if pipeline == "memory":
            raise ValueError(_NOT_HELD)
        super().__init__(
            data_dir,
            batch_size,
            val_size,
            seed,
            pipeline,
            num_workers,
            augment,
            validate_on_test,
            predict_dir,
            images_per_class=images_per_class,
        )

    @property
    def evaluation_transform(self) -> transforms.Compose:
        return transforms.Compose(
            [
                transforms.Resize(256),
                transforms.CenterCrop(224),
                *super().evaluation_transform.transforms,
            ]
        )

    @property
    def training_transform(self) -> transforms.Compose:
        random = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
        return transforms.Compose([*random, *super().evaluation_transform.transforms])

    def prepare_data(self) -> None:
        """See that both folders have every class; ImageNet is not to be had without an account."""
        self._classes()

    def images(self, train: bool) -> tuple[Tensor, Tensor]:
        raise ValueError(_NOT_HELD)

    def dataset(self, train: bool, transform: Any) -> Dataset[tuple[Any, int]]:
        paths, labels = [], []
        for label, name in enumerate(self._classes()):
            folder = self.data_dir / ("train" if train else "val") / name
            found = sorted(
                path for path in folder.iterdir() if path.suffix.lower() in IMG_EXTENSIONS
            )
            if not found:
                raise FileNotFoundError(
                    f"the class folder {str(folder)!r} holds no image; copy the data set anew"
                )
            paths += found
            labels += [label] * len(found)
        return Files(paths, torch.tensor(labels), transform, channels=3)

    def _classes(self) -> list[str]:
        """The names of the classes, sorted: a class's label is its place among them."""
        names = {part: _folders(self.data_dir / part) for part in ("train", "val")}
        if odd := names["train"] ^ names["val"]:
            name = min(odd)
            has, lacks = ("train", "val") if name in names["train"] else ("val", "train")
            raise ValueError(
                f"the class folder {name!r} is in {str(self.data_dir / has)!r} but not in"
                f" {str(self.data_dir / lacks)!r}"
            )
        if len(names["train"]) != self.num_classes:
            raise ValueError(
                f"{str(self.data_dir / 'train')!r} has {len(names['train'])} class folders,"
                f" expected {self.num_classes}"
            )
        return sorted(names["train"])


def _folders(path: Path) -> set[str]:
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(path)!r}; point --data.data_dir at the folder that holds"
            " train/ and val/"
        )
    return {folder.name for folder in path.iterdir() if folder.is_dir()}
