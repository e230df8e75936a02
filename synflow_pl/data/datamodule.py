"""Images: the LightningDataModule that every image data set here is one of."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from synflow_pl.data.counter_rng import draws, permutation
from synflow_pl.data.image_folder import fitting, image_files
from synflow_pl.data.loader import Batch, Loader, Source
from synflow_pl.data.memory import Memory
from synflow_pl.data.torchvision_loader import Files, Pictures, TorchvisionLoader
from synflow_pl.data.validity import check_images, check_labels, check_sample

__all__ = ["ImageDataModule", "default_data_dir"]

_PRUNING = -1
"""Stands for an epoch where images are drawn to prune on, so that they are not those that training
begins with. Draw k has -1 - k.
"""
_IMAGES_PER_CLASS = 10
"""Images of each class to prune on, unless the options give a number."""


def default_data_dir() -> Path:
    """Where data sets lie unless told otherwise: ``$SYNFLOW_DATA``, else
    ``~/.cache/synflow_pl``.
    """
    return Path(os.environ.get("SYNFLOW_DATA") or Path.home() / ".cache" / "synflow_pl")


class ImageDataModule(LightningDataModule, ABC):
    """Labelled images: downloaded in ``prepare_data``, a validation split held out by seed, the
    test set met only at ``test``.

    A subclass names its shape, classes, normalisation and augmentation, and says where its images
    come from.

    The order of an epoch and each image's crop and flip are functions of the seed, the epoch and
    the image: devices, workers and a run resumed in the middle of an epoch agree on them. The seed
    is ``seed`` together with that of Lightning's ``seed_everything``.

    Args:
        data_dir: folder of the files; by default ``$SYNFLOW_DATA``, else ``~/.cache/synflow_pl``.
        batch_size: images per training step over all devices together, at least 1; must divide by
            their number.
        val_size: training images held out for validation, at least 0; ``None`` is a tenth of them.
        seed: of the split, and with the run's own seed of the order, the augmentation and the
            pruning batches.
        pipeline: ``memory`` holds all images as bytes and crops, flips and normalises whole batches
            on the device; ``torchvision`` reads and transforms them one by one.
        num_workers: processes that load images in the pipeline ``torchvision``, per device; 0 loads
            them in the training process.
        augment: random crops and flips of training images, where the data set's paper has them.
        validate_on_test: validate on the test set, as some papers did; nothing is held out then.
            Warns.
        predict_dir: folder of images of one's own for ``predict``, in place of the test set.
        test_each_epoch: run the test set too after each epoch, logged as ``test_each_epoch/...``
            and never used to choose anything, so that a report can say what the test accuracy was
            at the best validation epoch.
        images_per_class: Training images of each class that data-driven pruners score on, at least
            1, an error if a class has fewer; ``None`` takes 10, or all images of a class that has
            fewer, with a warning.
    """

    input_shape: ClassVar[tuple[int, int, int]]
    """(C, H, W)."""
    num_classes: ClassVar[int]
    mean: ClassVar[tuple[float, ...]]
    """Of each channel, for pixels in [0, 1]."""
    std: ClassVar[tuple[float, ...]]
    crop_padding: ClassVar[int | None] = None
    """Pixels of zeros around an image before a random crop to its size, and flips; ``None``: no
    augmentation.
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
                "test_each_epoch goes beside a validation, and there is none; leave out"
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
        """Which images of the training set are ``train`` and which ``val``, int64 indices."""
        self._held: dict[bool, tuple[Tensor, Tensor]] = {}
        self._streams: list[TorchvisionLoader] = []

    # -- what a data set says

    @abstractmethod
    def images(self, train: bool) -> tuple[Tensor, Tensor]:
        """The training or test images, uint8 (N, C, H, W), and labels, integers (N,) in [0,
        ``num_classes``).

        Files are read here and never downloaded.
        """

    def dataset(self, train: bool, transform: Any) -> Dataset[tuple[Any, int]]:
        """The same for the pipeline ``torchvision``: each image passed through ``transform``, and
        all the ``labels``.
        """
        return Pictures(*self._in_memory(train), transform)

    @property
    def evaluation_transform(self) -> transforms.Compose:
        """Pixels to normalised float tensors."""
        return transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
        )

    @property
    def has_augmentation(self) -> bool:
        """Whether training images are cropped and flipped at random."""
        return self.crop_padding is not None

    @property
    def training_transform(self) -> transforms.Compose:
        """The same, after a random crop and flip where the data set has them."""
        if self.crop_padding is None:
            return self.evaluation_transform
        random = [
            transforms.RandomCrop(self.input_shape[1:], padding=self.crop_padding),
            transforms.RandomHorizontalFlip(),
        ]
        return transforms.Compose([*random, *self.evaluation_transform.transforms])

    # -- stages

    def setup(self, stage: str) -> None:
        """Open and check what ``stage`` needs, and nothing else.

        The test set is opened for ``test``, for ``predict`` without ``predict_dir``, with
        ``validate_on_test``, and for ``fit`` with ``test_each_epoch``.

        Raises:
            ValueError: If the images or labels are not what the class says, or none are left to
                train on.
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
        """End the workers."""
        while self._streams:
            self._streams.pop().close()

    def _count(self, train: bool) -> int:
        """Images of the training or test set, which is opened."""
        if self.pipeline == "memory":
            return len(self._in_memory(train)[1])
        dataset, labels = self._dataset(train, self.evaluation_transform)
        with torch.random.fork_rng(devices=[]):
            check_sample(
                dataset[0],
                f"{type(self).__name__}.dataset(train={train})",
                self.input_shape,
                int(labels[0]),
            )
        return len(labels)

    def _in_memory(self, train: bool) -> tuple[Tensor, Tensor]:
        if train not in self._held:
            source = f"{type(self).__name__}.images(train={train})"
            self._held[train] = check_images(
                self.images(train), source, self.input_shape, self.num_classes
            )
        return self._held[train]

    def _dataset(self, train: bool, transform: Any) -> tuple[Dataset[tuple[Any, int]], Tensor]:
        """The data set for the pipeline ``torchvision``, and its labels, int64 (N,)."""
        dataset: Any = self.dataset(train, transform)
        source = f"{type(self).__name__}.dataset(train={train})"
        return dataset, check_labels(
            getattr(dataset, "labels", None), source, len(dataset), self.num_classes
        )

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
        """Batches in another order in each epoch, augmented; a last batch that is not full is
        kept.
        """
        shuffle = not getattr(self.trainer, "overfit_batches", 0)
        augment = self.augment and self.has_augmentation
        return self._loader(
            self._source(train=True, augment=augment), self.split["train"], shuffle, augment
        )

    def val_dataloader(self) -> Loader | list[Any]:
        """The held-out images in order; none if ``val_size`` is 0. While training with
        ``test_each_epoch``, the test images too.
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
        """The test images in order."""
        source = self._source(train=False)
        return self._loader(source, torch.arange(len(source.labels)))

    def predict_dataloader(self) -> Loader:
        """The test images in order, or those of the folder ``predict_dir`` in the order of their
        names.
        """
        if self.predict_dir is None:
            return self.test_dataloader()
        files = self.predict_files
        transform = fitting(self.input_shape[1:], self.mean, self.std)
        unknown = torch.full((len(files),), -1)
        stream = self._stream(
            Files(files, unknown, transform, channels=self.input_shape[0]), unknown
        )
        return self._loader(stream, torch.arange(len(files)))

    @property
    def predict_files(self) -> list[Path]:
        """The images of the folder ``predict_dir``, and of those within it, by name.

        Raises:
            FileNotFoundError: if there is no such folder, or no image in it.
        """
        assert self.predict_dir is not None
        return image_files(self.predict_dir)

    def pruning_batches(
        self, images_per_class: int | None = None, augment: bool = False, draw: int = 0
    ) -> list[Batch]:
        """Training images to score on, drawn by seed: the same on every rank.

        Args:
            images_per_class: Images of each class, at least 1; ``None`` is the option of the data
                module, and where that is ``None`` too, 10, or all images of a class that has fewer,
                with a warning.
            augment: crop and flip them as for training.
            draw: number of the sample, at least 0: another one draws other images, for fresh
                batches in every round of a pruning.

        Returns:
            Pairs of normalised images, float (N, C, H, W), and labels, int64 (N,), of
            ``batch_size`` images at most. Classes alternate, so that each batch holds about as many
            of one as of another.

        Raises:
            ValueError: if a class has fewer training images than a number that was given, or
                ``draw`` is negative.
        """
        asked = self.images_per_class if images_per_class is None else images_per_class
        if asked is not None and asked < 1:
            raise ValueError(f"images_per_class: {asked} must be at least 1")
        if draw < 0:
            raise ValueError(f"draw: {draw} must be at least 0")
        if not self.split:
            self.setup("fit")
        epoch = _PRUNING - draw
        augment = augment and self.has_augmentation
        source = self._source(train=True, augment=augment)
        images = self.split["train"][permutation(self._run_seed, epoch, len(self.split["train"]))]
        count = _IMAGES_PER_CLASS if asked is None else asked
        self._check_classes(
            source.labels[images].bincount(minlength=self.num_classes),
            count,
            given=asked is not None,
        )
        in_turn = _in_turn(images, source.labels, count)
        batches = in_turn.split(self.batch_size)
        return list(
            source.read(
                (batch, draws(self._run_seed, epoch, batch) if augment else None)
                for batch in batches
            )
        )

    def _check_classes(self, available: Tensor, count: int, given: bool) -> None:
        """Refuse or report classes with fewer than ``count`` training images; ``available`` counts
        them, int64 (num_classes,).
        """
        small = (available < count).nonzero().flatten().tolist()
        if not small:
            return
        first, least = small[0], int(available.min())
        has = (
            f"images_per_class: class {first} has {int(available[first])} training images, not"
            f" {count}"
        )
        also = f" (and {len(small) - 1} more classes have too few)" if len(small) > 1 else ""
        instead = (
            "leave --data.images_per_class out, which takes all images of a class that has too few"
        )
        if given:
            raise ValueError(
                f"{has}; ask for fewer (all classes have {least}), or {instead}"
                if least
                else f"{has}; {instead}"
            )
        equal = (
            f"; --data.images_per_class {least} takes equally many of each class" if least else ""
        )
        rank_zero_warn(f"{has}{also}, so pruning scores on all that there are{equal}")

    # -- how they are read

    @property
    def _run_seed(self) -> int:
        """The data's seed in the upper bits, and in the lower ones that of the run, which Lightning
        keeps in the environment.
        """
        return (self.seed << 32) + int(os.environ.get("PL_GLOBAL_SEED", 0))

    def _source(self, train: bool, augment: bool = False) -> Source:
        if self.pipeline == "torchvision":
            return self._stream(
                *self._dataset(
                    train, self.training_transform if augment else self.evaluation_transform
                )
            )
        images, labels = self._in_memory(train)
        device = self.trainer.strategy.root_device if self.trainer is not None else "cpu"
        return Memory(
            images,
            labels,
            mean=self.mean,
            std=self.std,
            padding=self.crop_padding or 0,
            device=device,
        )

    def _stream(self, dataset: Dataset[tuple[Any, int]], labels: Tensor) -> TorchvisionLoader:
        self._streams.append(TorchvisionLoader(dataset, labels, self.num_workers))
        return self._streams[-1]

    def _loader(
        self, source: Source, images: Tensor, shuffle: bool = False, augment: bool = False
    ) -> Loader:
        rank, ranks = (
            (self.trainer.global_rank, self.trainer.world_size)
            if self.trainer is not None
            else (0, 1)
        )
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


def _in_turn(images: Tensor, labels: Tensor, count: int) -> Tensor:
    """Choose the first ``count`` images of each class, and order them so that classes alternate.

    Args:
        images: Indices of images, int64 (N,).
        labels: Labels of all images that ``images`` indexes, int64.
        count: Images of each class; a class that has fewer gives all of its images.

    Returns:
        Indices, int64 (at most N,): the first image of each class by label, then the second of each
        class, and so on.
    """
    by_class = images[labels[images].argsort(stable=True)]
    sizes = labels[by_class].unique_consecutive(return_counts=True)[1]
    place = torch.arange(len(by_class)) - (sizes.cumsum(0) - sizes).repeat_interleave(
        sizes
    )  # among the images of its class
    chosen = place < count
    return by_class[chosen][place[chosen].argsort(stable=True)]
