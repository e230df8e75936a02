"""Distribution of random crops and flips, which is uniform in both pipelines."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from synflow_pl.data import CIFAR10

COUNT = 8100
PLACES = 9 * 9 * 2


class Grid(CIFAR10):
    """Images whose red pixels have the row, green pixels the column, and blue pixels a constant."""

    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    count = COUNT
    num_classes = COUNT  # each image has a label of its own

    def images(self, train: bool) -> tuple[Tensor, Tensor]:
        line = torch.arange(32, dtype=torch.uint8)
        image = torch.stack(
            [
                line[:, None].expand(32, 32),
                line.expand(32, 32),
                torch.full((32, 32), 200, dtype=torch.uint8),
            ]
        )
        return image.expand(self.count, -1, -1, -1), torch.arange(self.count)


def drawn(data: CIFAR10, epochs: int = 1) -> list[tuple[int, int, int]]:
    """Return the row and column of each image's crop, 0 to 8, and whether it is flipped."""
    data.setup("fit")
    loader, found = data.train_dataloader(), []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for images, _ in loader:
            # These two pixels are inside the image for every crop.
            middle = (images[:, :, 16, 15:17] * 255).round().long()
            left, right = middle[:, 1].T
            row, flip = middle[:, 0, 0] - 12, (left > right).long()
            # Pixel 15 of the crop at column c is pixel 15 + c - 4 of the image; in a flipped crop
            # it is pixel 16.
            column = torch.minimum(left, right) - 11
            found += list(zip(row.tolist(), column.tolist(), flip.tolist(), strict=True))
    return found


def chi_square(counts: Counter[Any], cells: int) -> float:
    expected = sum(counts.values()) / cells
    return sum((count - expected) ** 2 for count in counts.values()) / expected + expected * (
        cells - len(counts)
    )


@pytest.mark.parametrize("pipeline", ["memory", "torchvision"])
def test_every_offset_and_flip_is_equally_likely(pipeline: Any) -> None:
    counts = Counter(drawn(Grid(val_size=0, pipeline=pipeline)))
    rows, columns, flips = (set(values) for values in zip(*counts, strict=True))
    assert (rows, columns, flips) == (set(range(9)), set(range(9)), {0, 1})
    # 161 degrees of freedom: mean 161, deviation sqrt(2 * 161) = 18. One in ten thousand seeds
    # exceeds the mean by four deviations.
    assert chi_square(counts, PLACES) < 161 + 4 * 18
    # One degree of freedom: one in ten thousand seeds exceeds 15.1.
    assert chi_square(Counter(flip for *_, flip in counts.elements()), 2) < 15.1


def test_an_image_is_augmented_differently_in_each_epoch() -> None:
    data = Grid(val_size=0)
    first, second = drawn(data), drawn(data, epochs=2)[COUNT:]
    # Two draws for an image are equal with probability 1/162: expected 50 of 8100, deviation 7.
    orders = []
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.set_epoch(epoch)
        orders.append(torch.cat([images for images, _ in loader.epoch_keys()]).argsort().tolist())
    same = sum(first[a] == second[b] for a, b in zip(*orders, strict=True))
    assert 50 - 5 * 7 <= same <= 50 + 5 * 7


@pytest.mark.parametrize("pipeline", ["memory", "torchvision"])
def test_a_crop_is_black_outside_of_the_image(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Grid, "count", 200)
    data = Grid(val_size=0, pipeline=pipeline)
    places = drawn(data)
    images = torch.cat([images for images, _ in data.train_dataloader()])
    for image, (row, column, _) in zip(images, places, strict=True):
        black = int((image[2] == 0).sum())
        assert black == 32 * 32 - (32 - abs(row - 4)) * (32 - abs(column - 4))


@pytest.mark.parametrize("pipeline", ["memory", "torchvision"])
def test_validation_and_test_images_are_not_augmented(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Grid, "count", 200)
    data = Grid(val_size=100, pipeline=pipeline)
    data.setup("fit")
    data.setup("test")
    whole = data.images(train=False)[0][0] / 255
    for loader in (data.val_dataloader(), data.test_dataloader()):
        images, _ = next(iter(loader))
        torch.testing.assert_close(images, whole.expand_as(images))
