"""Stream: images that are read, transformed and collated one by one by torchvision, in as many
processes as one likes.
"""

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

__all__ = ["Files", "Pictures", "TorchvisionLoader"]

Transform = Callable[[Image.Image], Any]


class Pictures(Dataset[tuple[Any, int]]):
    """Images in memory, each passed through a torchvision transform.

    Args:
        images: uint8 (N, C, H, W), of one channel or three.
        labels: int64 (N,).
        transform: of a PIL image; ``None`` leaves it.
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


class Files(Dataset[tuple[Any, int]]):
    """Images in files, each decoded and passed through a torchvision transform when it is asked
    for.

    Args:
        paths: of the files.
        labels: int64 (N,).
        transform: of a PIL image; ``None`` leaves it.
        channels: 1 makes every image grey, 3 makes it coloured.
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
    """Takes (index, number drawn) instead of an index; what the transform draws is a function of
    that number.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int | None]) -> Any:
        index, number = key
        try:
            return self._draw(index, number)
        except UnreadableImage as error:
            return error  # a worker process would wrap an exception that is raised in its traceback

    def _draw(self, index: int, number: int | None) -> Any:
        if number is None:
            return self.dataset[index]
        # torchvision's transforms draw from the CPU's generator; only that one is touched, and left
        # as it was.
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
    """A source of images that go through torchvision's transforms one by one.

    Args:
        dataset: images and labels by index.
        labels: Labels of all its images, int64 (N,).
        num_workers: processes that load images; 0 loads them in this one.
    """

    def __init__(self, dataset: Dataset[Any], labels: Tensor, num_workers: int = 0) -> None:
        self.labels = labels
        self._keys: list[list[tuple[int, int | None]]] = []
        # Its workers live as long as it does; they are handed the keys of each epoch anew.
        self._loader = DataLoader(
            _Seeded(dataset),
            batch_sampler=self._keys,
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # or it would draw from the global one
        )

    def read(self, keys: Iterable[Key]) -> Iterator[Batch]:
        """One batch for each key, in this process's memory.

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
        """End the workers. Left to the garbage collector, which takes their queues away first, each
        is waited for in vain for 5 s.
        """
        if isinstance(self._loader._iterator, _MultiProcessingDataLoaderIter):
            self._loader._iterator._shutdown_workers()
        self._loader._iterator = None
