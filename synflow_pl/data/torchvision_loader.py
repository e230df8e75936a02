"""Source that reads, transforms and collates images one by one, optionally in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from synflow_pl.data.loader import Batch, Key
from synflow_pl.data.pixels import UnreadableImage, decode

__all__ = ["ImageFiles", "TensorImages", "TorchvisionLoader"]

Transform = Callable[[Image.Image], Any]


class TensorImages(Dataset[tuple[Any, int]]):
    """Data set of images in memory, each passed through a torchvision transform.

    Args:
        images: Images, uint8 (N, C, H, W), with C = 1 or 3.
        labels: Labels, int64 (N,).
        transform: Transform of a PIL image; ``None`` returns the PIL image.
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: Transform | None) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images[index]
        picture = Image.fromarray((image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy())
        return self.transform(picture) if self.transform is not None else picture, int(
            self.labels[index]
        )


class ImageFiles(Dataset[tuple[Any, int]]):
    """Data set of image files, each decoded and passed through a torchvision transform on access.

    Args:
        paths: Paths of the files.
        labels: Labels, int64 (N,).
        transform: Transform of a PIL image; ``None`` returns the PIL image.
        channels: Number of channels: 1 converts every image to grey, 3 to RGB.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Tensor, transform: Transform | None, channels: int = 3
    ) -> None:
        self.paths, self.labels, self.transform, self.channels = paths, labels, transform, channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = decode(self.paths[index], self.channels)
        return self.transform(picture) if self.transform is not None else picture, int(
            self.labels[index]
        )


class _Seeded(Dataset[Any]):
    """Data set indexed by (index, random number); the number seeds the random transforms."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int | None]) -> Any:
        index, number = key
        try:
            return self._draw(index, number)
        except UnreadableImage as error:
            return error  # raised by read(): a worker would add its traceback to the message

    def _draw(self, index: int, number: int | None) -> Any:
        if number is None:
            return self.dataset[index]
        # torchvision's transforms use torch's CPU generator, whose state is restored afterwards.
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(number)
        try:
            return self.dataset[index]
        finally:
            torch.set_rng_state(state)


def _collate(samples: list[Any]) -> Any:
    """Collate the samples of a batch, or return the first error among them."""
    return next(
        (sample for sample in samples if isinstance(sample, UnreadableImage)), None
    ) or default_collate(samples)


class TorchvisionLoader:
    """Source of images that are passed through torchvision's transforms one by one.

    Args:
        dataset: Data set of images and labels.
        labels: Labels of all images of the data set, int64 (N,).
        num_workers: Number of worker processes; 0 loads images in the calling process.
    """

    def __init__(self, dataset: Dataset[Any], labels: Tensor, num_workers: int = 0) -> None:
        self.labels = labels
        self._keys: list[list[tuple[int, int | None]]] = []
        # The workers persist between epochs; read() puts the keys of each epoch into the list.
        self._loader = DataLoader(
            _Seeded(dataset),
            batch_sampler=self._keys,
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # the default is the global generator
        )

    def read(self, keys: Iterable[Key]) -> Iterator[Batch]:
        """Yield one batch for each key, in CPU memory.

        Args:
            keys: Images of each batch.

        Raises:
            UnreadableImage: If an image file cannot be decoded unambiguously.
        """
        self._keys[:] = [
            list(
                zip(
                    indices.tolist(),
                    [None] * len(indices) if numbers is None else numbers.tolist(),
                    strict=True,
                )
            )
            for indices, numbers in keys
        ]
        for batch in self._loader:
            if isinstance(batch, UnreadableImage):
                raise batch
            yield tuple(batch)

    def close(self) -> None:
        """Stop the worker processes.

        The garbage collector would delete their queues first and then wait 5 s for each worker.
        """
        if isinstance(self._loader._iterator, _MultiProcessingDataLoaderIter):
            self._loader._iterator._shutdown_workers()
        self._loader._iterator = None
