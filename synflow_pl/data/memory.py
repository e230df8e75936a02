"""Memory: images held once as bytes; whole batches are gathered, moved, and then cropped, flipped
and normalised on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from synflow_pl.data.loader import Batch, Key

__all__ = ["Memory", "crop_and_flip", "normalise", "offsets_and_flips"]


class Memory:
    """A source of images that are all in memory.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        mean: of each channel, for pixels in [0, 1].
        std: of each channel.
        padding: pixels of zeros around an image before it is cropped to its size, for images that a
            number was drawn for.
        device: where batches are worked on and handed out.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        padding: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.images = images
        self.labels = labels
        self.padding = padding
        self.device = torch.device(device)
        self.mean, self.std = (
            torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std)
        )

    def read(self, keys: Iterable[Key]) -> Iterator[Batch]:
        """One batch for each key, on the device."""
        for indices, numbers in keys:
            images = self._move(self.images.index_select(0, indices))
            if numbers is not None:
                images = crop_and_flip(
                    images, self._move(offsets_and_flips(numbers, self.padding)), self.padding
                )
            yield (
                normalise(images, self.mean, self.std),
                self._move(self.labels.index_select(0, indices)),
            )

    def _move(self, tensor: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return tensor.to(self.device)
        # From pinned memory the copy runs beside the network's work.
        return tensor.pin_memory().to(self.device, non_blocking=True)


def offsets_and_flips(numbers: Tensor, padding: int) -> Tensor:
    """The crop's row and column in 0 ... 2 ``padding``, and the flip in {0, 1}, of each image, from
    the number drawn for it.

    Args:
        numbers: int64 (N,), uniform in [0, 2**63).
        padding: pixels on each side.

    Returns:
        int64 (3, N).
    """
    # 31 bits for each offset: modulo the number of places, one is favoured over another by less
    # than a part in 10^7.
    places = 2 * padding + 1
    return torch.stack(
        [(numbers & 2**31 - 1) % places, (numbers >> 31 & 2**31 - 1) % places, numbers >> 62]
    )


def crop_and_flip(images: Tensor, drawn: Tensor, padding: int) -> Tensor:
    """Surround each image by ``padding`` zeros, cut its own window out, and mirror it left to right
    where told to.

    Args:
        images: uint8 (N, C, H, W).
        drawn: int64 (3, N): the window's row and column, and 1 where it is mirrored.
        padding: pixels on each side.

    Returns:
        uint8 (N, C, H, W).
    """
    count, channels, height, width = images.shape
    row, column, flip = drawn
    surrounded = pad(images, (padding,) * 4)
    rows, columns = surrounded.shape[-2:]
    # A row of the window is `width` bytes in a row. One gather of all of them, each from its own
    # place, costs about as much as a copy.
    corner = (torch.arange(count, device=images.device) * channels * rows + row) * columns + column
    channel = torch.arange(channels, device=images.device)[:, None] * (rows * columns)
    line = torch.arange(height, device=images.device) * columns
    begins = (corner[:, None, None] + channel + line).flatten()
    windows = surrounded.flatten().unfold(0, width, 1).index_select(0, begins).view(images.shape)
    chosen = flip.nonzero().squeeze(1)
    mirrored = windows.index_select(0, chosen).flip(-1)
    # Gathered from both, not copied into place: copying single bytes to given places costs many
    # times as much.
    place = torch.arange(count, device=images.device)
    place[chosen] = count + torch.arange(len(chosen), device=images.device)
    return torch.cat([windows, mirrored]).index_select(0, place)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Bytes to float32 of about zero mean and unit deviation, in the steps that torchvision takes,
    so that the floats are the same.
    """
    return images.float().div_(255).sub_(mean).div_(std)
