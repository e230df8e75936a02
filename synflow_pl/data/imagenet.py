"""ImageNet (Russakovsky et al. 2015, ILSVRC 2012): 1,281,167 training and 50,000 test images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS

from synflow_pl.data.datamodule import ImageDataModule
from synflow_pl.data.torchvision_loader import ImageFiles

__all__ = ["ImageNet"]

_NOT_HELD = (
    "pipeline: ImageNet does not fit in memory; leave it at torchvision, and give it num_workers"
)


class ImageNet(ImageDataModule):
    """ImageNet: photographs at 224x224, 1,000 classes; has to be downloaded by the user.

    ``train/`` and ``val/`` have one folder for each class. ImageNet's ``val`` images are the test
    set here, since the labels of its ``test`` images were never published. Images are read one by
    one. For training, random crops are resized to 224x224 and flipped at random; otherwise the
    shorter side is resized to 256 and the centre is cut out (He et al. 2016).

    Args:
        data_dir: Folder that contains ``train/`` and ``val/``; ``None`` is ``$SYNFLOW_DATA``, else
            ``~/.cache/synflow_pl``.
        batch_size: Images per training step over all devices together, at least 1; must be a
            multiple of the number of devices.
        val_size: Number of training images held out for validation, at least 0; ``None`` is a tenth
            of them.
        seed: Seed of the split and, combined with the seed of the run, of the order, the
            augmentation and the images that pruning scores on.
        pipeline: ``"torchvision"``; the images do not fit in memory.
        num_workers: Worker processes per device that load images; 0 loads them in the training
            process.
        augment: Whether training images are cropped and flipped at random.
        validate_on_test: Whether to validate on the test set, as most papers did. No images are
            held out then, and a warning is issued.
        predict_dir: Folder of the user's own images for ``predict``; ``None`` predicts the test
            set.
        images_per_class: Number of training images of each class that data-driven pruners score on,
            at least 1, an error if a class has fewer; ``None`` takes 10, or all images of a class
            that has fewer, with a warning.

    Example:
        >>> data = ImageNet(batch_size=512, num_workers=16)
        >>> data.input_shape, data.num_classes
        ((3, 224, 224), 1000)
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
        """Check that ``train/`` and ``val/`` have a folder for every class.

        Nothing is downloaded, since ImageNet requires an account.
        """
        self._classes()

    def images(self, train: bool) -> tuple[Tensor, Tensor]:
        raise ValueError(_NOT_HELD)

    def dataset(self, train: bool, transform: Any) -> Dataset[tuple[Any, int]]:
        paths, labels = [], []
        for label, name in enumerate(self._classes()):
            folder = self.data_dir / ("train" if train else "val") / name
            images = sorted(
                path for path in folder.iterdir() if path.suffix.lower() in IMG_EXTENSIONS
            )
            if not images:
                raise FileNotFoundError(
                    f"the class folder {str(folder)!r} holds no image; copy the data set again"
                )
            paths += images
            labels += [label] * len(images)
        return ImageFiles(paths, torch.tensor(labels), transform, channels=3)

    def _classes(self) -> list[str]:
        """Return the names of the classes, sorted; the label of a class is its index."""
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
