"""Base class of the data modules of image data sets."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import Dataset

from synflow_pl.data.counter_rng import permutation, random_numbers
from synflow_pl.data.image_folder import image_files, resize_transform
from synflow_pl.data.labelled_images import LabelledImages
from synflow_pl.data.loader import Batch, Loader, Source
from synflow_pl.data.memory import MemorySource
from synflow_pl.data.pruning_sample import choose_images
from synflow_pl.data.torchvision_loader import ImageFiles, TorchvisionLoader

__all__ = ["ImageDataModule", "default_data_dir"]

_PRUNING = -1
"""Epoch of the images that pruning scores on, which are thus not the first of the training.

Sample k has the epoch -1 - k.
"""


def default_data_dir() -> Path:
    """Return the default folder of data sets: ``$SYNFLOW_DATA``, else ``~/.cache/synflow_pl``."""
    return Path(os.environ.get("SYNFLOW_DATA") or Path.home() / ".cache" / "synflow_pl")


class ImageDataModule(LabelledImages, LightningDataModule):
    """Base class for labelled images.

    Images are downloaded in ``prepare_data``, a validation split is held out by seed, and the test
    set is opened only for ``test``. A subclass defines the shape, the classes, the normalisation
    and the augmentation of its images as class attributes, and reads them in :meth:`images`.

    The order of the images in an epoch, and the crop and flip of each image, are functions of the
    seed, the epoch and the image. So devices, worker processes and a run resumed within an epoch
    agree on them. The seed combines ``seed`` with the seed of Lightning's ``seed_everything``.

    Args:
        data_dir: Folder of the files; ``None`` is ``$SYNFLOW_DATA``, else ``~/.cache/synflow_pl``.
        batch_size: Images per training step over all devices together, at least 1; must be a
            multiple of the number of devices.
        val_size: Number of training images held out for validation, at least 0; ``None`` is a tenth
            of them.
        seed: Seed of the split and, combined with the seed of the run, of the order, the
            augmentation and the images that pruning scores on.
        pipeline: ``"memory"`` holds all images in memory as bytes and crops, flips and normalises
            whole batches on the device; ``"torchvision"`` reads and transforms images one by one.
        num_workers: Worker processes per device that load images in the pipeline ``"torchvision"``;
            0 loads them in the training process.
        augment: Whether training images are cropped and flipped at random, if the data set defines
            an augmentation.
        validate_on_test: Whether to validate on the test set, as some papers did. No images are
            held out then, and a warning is issued.
        predict_dir: Folder of the user's own images for ``predict``; ``None`` predicts the test
            set.
        test_each_epoch: Whether to evaluate the test set after each epoch too. The results are
            logged as ``test_each_epoch/...`` and never used to choose a checkpoint; a report reads
            the test accuracy at the best validation epoch from them.
        images_per_class: Number of training images of each class that data-driven pruners score on,
            at least 1, an error if a class has fewer; ``None`` takes 10, or all images of a class
            that has fewer, with a warning.

    Example:
        >>> from synflow_pl.data import Digits
        >>> data = Digits(batch_size=100)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([100, 1, 28, 28]), torch.Size([100]))
    """

    def __init__(
        self,
        data_dir: str | None = None,
        batch_size: int = 128,
        val_size: int | None = None,
        seed: int = 0,
        pipeline: Literal["memory", "torchvision"] = "memory",
        num_workers: int = 0,
        augment: bool = True,
        validate_on_test: bool = False,
        predict_dir: str | None = None,
        test_each_epoch: bool = False,
        images_per_class: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("val_size", val_size or 0, 0),
            ("num_workers", num_workers, 0),
            ("images_per_class", 1 if images_per_class is None else images_per_class, 1),
        ):
            if value < least:
                raise ValueError(f"{name}: {value} must be at least {least}")
        if pipeline not in ("memory", "torchvision"):
            raise ValueError(f"pipeline: {pipeline!r} is not one of memory, torchvision")
        if test_each_epoch and (validate_on_test or val_size == 0):
            raise ValueError(
                "test_each_epoch needs a validation set, and there is none; leave out"
                " validate_on_test and val_size 0"
            )
        self.data_dir = Path(data_dir).expanduser() if data_dir is not None else default_data_dir()
        self.batch_size = batch_size
        self.val_size = val_size
        self.seed = seed
        self.pipeline = pipeline
        self.num_workers = num_workers
        self.augment = augment
        self.validate_on_test = validate_on_test
        self.predict_dir = Path(predict_dir).expanduser() if predict_dir is not None else None
        self.test_each_epoch = test_each_epoch
        self.images_per_class = images_per_class
        self.split: dict[str, Tensor] = {}
        """Indices, int64, of the ``"train"`` and the ``"val"`` images in the training set."""
        self._loaders: list[TorchvisionLoader] = []

    # -- stages

    def setup(self, stage: str) -> None:
        """Open and check the images that a stage needs, and no others.

        The test set is opened for ``"test"``, for ``"predict"`` without ``predict_dir``, with
        ``validate_on_test``, and for ``"fit"`` with ``test_each_epoch``.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.

        Raises:
            ValueError: If the images or labels do not agree with the class attributes, or no images
                are left to train on.
        """
        if stage in ("fit", "validate"):
            self._split(self._count(train=True))
            if self.validate_on_test:
                warnings.warn(
                    "validate_on_test: the validation numbers of this run are test numbers;"
                    " choose nothing by them.",
                    stacklevel=2,
                )
                self._count(train=False)
            if self.test_each_epoch and stage == "fit":
                self._count(train=False)
        elif stage == "test" or self.predict_dir is None:
            self._count(train=False)

    def teardown(self, stage: str) -> None:
        """Stop the worker processes."""
        while self._loaders:
            self._loaders.pop().close()

    def _split(self, count: int) -> None:
        size = (
            0 if self.validate_on_test else count // 10 if self.val_size is None else self.val_size
        )
        if size >= count:
            raise ValueError(
                f"val_size: {size} leaves none of the {count} training images to train on"
            )
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        self.split = {"val": order[:size].sort().values, "train": order[size:].sort().values}

    # -- batches

    def train_dataloader(self) -> Loader:
        """Return batches of augmented training images in a different order in each epoch.

        The last batch is kept if it is not full.
        """
        shuffle = not getattr(self.trainer, "overfit_batches", 0)
        augment = self.augment and self.has_augmentation
        return self._loader(
            self._source(train=True, augment=augment), self.split["train"], shuffle, augment
        )

    def val_dataloader(self) -> Loader | list[Any]:
        """Return batches of the held-out images in order; an empty list if ``val_size`` is 0.

        While training with ``test_each_epoch``, a second loader has the test images.
        """
        if self.validate_on_test:
            return self.test_dataloader()
        if (
            self.test_each_epoch
            and self.trainer is not None
            and self.trainer.state.fn == TrainerFn.FITTING
        ):
            return [
                self._loader(self._source(train=True), self.split["val"]),
                self.test_dataloader(),
            ]
        return (
            self._loader(self._source(train=True), self.split["val"])
            if len(self.split["val"])
            else []
        )

    def test_dataloader(self) -> Loader:
        """Return batches of the test images in order."""
        source = self._source(train=False)
        return self._loader(source, torch.arange(len(source.labels)))

    def predict_dataloader(self) -> Loader:
        """Return batches of the test images in order, or of the images in ``predict_dir``."""
        if self.predict_dir is None:
            return self.test_dataloader()
        files = self.predict_files
        transform = resize_transform(self.input_shape[1:], self.mean, self.std)
        unknown = torch.full((len(files),), -1)
        source = self._torchvision_loader(
            ImageFiles(files, unknown, transform, channels=self.input_shape[0]), unknown
        )
        return self._loader(source, torch.arange(len(files)))

    @property
    def predict_files(self) -> list[Path]:
        """Paths of the images in the folder ``predict_dir`` and its subfolders, sorted.

        Raises:
            FileNotFoundError: If there is no such folder, or it has no image.
        """
        assert self.predict_dir is not None
        return image_files(self.predict_dir)

    def pruning_batches(
        self, images_per_class: int | None = None, augment: bool = False, draw: int = 0
    ) -> list[Batch]:
        """Return training images to score on, drawn by seed and equal on every rank.

        Args:
            images_per_class: Number of images of each class, at least 1; ``None`` is the option of
                the data module, and if that is ``None`` too, 10, or all images of a class that has
                fewer, with a warning.
            augment: Whether the images are cropped and flipped as for training.
            draw: Index of the sample, at least 0; each index draws other images, for fresh batches
                in every round of a pruning.

        Returns:
            Pairs of normalised images, float (N, C, H, W), and labels, int64 (N,), of at most
            ``batch_size`` images. Classes alternate, so each batch has about as many images of
            every class.

        Raises:
            ValueError: If a class has fewer training images than the number that was given, or
                ``draw`` is negative.

        Example:
            >>> from synflow_pl.data import Digits
            >>> [(images, labels)] = Digits().pruning_batches(images_per_class=2)
            >>> labels.tolist()
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
        """
        requested = self.images_per_class if images_per_class is None else images_per_class
        if requested is not None and requested < 1:
            raise ValueError(f"images_per_class: {requested} must be at least 1")
        if draw < 0:
            raise ValueError(f"draw: {draw} must be at least 0")
        if not self.split:
            self.setup("fit")
        epoch = _PRUNING - draw
        augment = augment and self.has_augmentation
        source = self._source(train=True, augment=augment)
        images = self.split["train"][permutation(self._run_seed, epoch, len(self.split["train"]))]
        chosen = choose_images(images, source.labels, self.num_classes, requested)
        return list(
            source.read(
                (batch, random_numbers(self._run_seed, epoch, batch) if augment else None)
                for batch in chosen.split(self.batch_size)
            )
        )

    # -- sources of the pipelines

    @property
    def _run_seed(self) -> int:
        """Seed of the data in the upper bits and seed of the run in the lower bits.

        Lightning stores the seed of the run in an environment variable.
        """
        return (self.seed << 32) + int(os.environ.get("PL_GLOBAL_SEED", 0))

    def _source(self, train: bool, augment: bool = False) -> Source:
        if self.pipeline == "torchvision":
            return self._torchvision_loader(
                *self._dataset(
                    train, self.training_transform if augment else self.evaluation_transform
                )
            )
        images, labels = self._in_memory(train)
        device = self.trainer.strategy.root_device if self.trainer is not None else "cpu"
        return MemorySource(
            images,
            labels,
            mean=self.mean,
            std=self.std,
            padding=self.crop_padding or 0,
            device=device,
        )

    def _torchvision_loader(
        self, dataset: Dataset[tuple[Any, int]], labels: Tensor
    ) -> TorchvisionLoader:
        self._loaders.append(TorchvisionLoader(dataset, labels, self.num_workers))
        return self._loaders[-1]

    def _loader(
        self, source: Source, images: Tensor, shuffle: bool = False, augment: bool = False
    ) -> Loader:
        rank, ranks = (
            (self.trainer.global_rank, self.trainer.world_size)
            if self.trainer is not None
            else (0, 1)
        )
        if self.trainer is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            # Ranks of one tensor-parallel group compute with the same images.
            shares = self.trainer.strategy.distributed_sampler_kwargs
            rank, ranks = shares["rank"], shares["num_replicas"]
        if self.batch_size % ranks:
            raise ValueError(
                f"batch_size: {self.batch_size} images cannot be shared evenly by {ranks} devices;"
                " choose a multiple"
            )
        return Loader(
            source,
            images,
            self.batch_size,
            shuffle=shuffle,
            augment=augment,
            seed=self._run_seed,
            rank=rank,
            ranks=ranks,
        )
