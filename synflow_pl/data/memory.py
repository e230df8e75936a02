"""Source that holds all images in memory, and crops, flips and normalises batches on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from synflow_pl.data.loader import Batch, Key

__all__ = ["MemorySource", "crop_and_flip", "normalise", "offsets_and_flips"]


class MemorySource:
    """Source of images that are held in memory.

    Args:
        images: Images, uint8 (N, C, H, W).
        labels: Labels, int64 (N,).
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        padding: Zero padding in pixels before the random crop of images that have a random number.
        device: Device of the batches.
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
        """Yield one batch for each key, on the device.

        Args:
            keys: Images of each batch.
        """
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
        # A copy from pinned memory overlaps with the computation of the network.
        return tensor.pin_memory().to(self.device, non_blocking=True)


def offsets_and_flips(numbers: Tensor, padding: int) -> Tensor:
    """Return the row and column of each image's crop, and whether the image is flipped.

    Args:
        numbers: Random numbers, int64 (N,), uniform in [0, 2**63).
        padding: Padding in pixels on each side.

    Returns:
        Rows and columns in 0 ... 2 ``padding``, and flips in {0, 1}: int64 (3, N).
    """
    # With 31 bits for each offset, the remainders have equal probability to within a part in 10^7.
    places = 2 * padding + 1
    return torch.stack(
        [(numbers & 2**31 - 1) % places, (numbers >> 31 & 2**31 - 1) % places, numbers >> 62]
    )


def crop_and_flip(images: Tensor, drawn: Tensor, padding: int) -> Tensor:
    """Pad each image with zeros, crop it at its own offset, and mirror it left to right if flipped.

    Args:
        images: Images, uint8 (N, C, H, W).
        drawn: Row and column of each crop, and 1 for each image to flip, int64 (3, N).
        padding: Padding in pixels on each side.

    Returns:
        Images, uint8 (N, C, H, W).
    """
    count, channels, height, width = images.shape
    row, column, flip = drawn
    surrounded = pad(images, (padding,) * 4)
    rows, columns = surrounded.shape[-2:]
    # A row of a crop is `width` consecutive bytes. One gather of all rows costs about as much as a
    # copy.
    corner = (torch.arange(count, device=images.device) * channels * rows + row) * columns + column
    channel = torch.arange(channels, device=images.device)[:, None] * (rows * columns)
    line = torch.arange(height, device=images.device) * columns
    begins = (corner[:, None, None] + channel + line).flatten()
    windows = surrounded.flatten().unfold(0, width, 1).index_select(0, begins).view(images.shape)
    chosen = flip.nonzero().squeeze(1)
    mirrored = windows.index_select(0, chosen).flip(-1)
    # A gather from both is many times as fast as copying the mirrored images by index.
    place = torch.arange(count, device=images.device)
    place[chosen] = count + torch.arange(len(chosen), device=images.device)
    return torch.cat([windows, mirrored]).index_select(0, place)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Convert bytes to float32 of about zero mean and unit deviation.

    The operations are those of torchvision, so that the results are equal bit for bit.

    Args:
        images: Images, uint8 (N, C, H, W).
        mean: Mean of each channel, (C, 1, 1), for pixels in [0, 1].
        std: Standard deviation of each channel, (C, 1, 1), for pixels in [0, 1].
    """
    return images.float().div_(255).sub_(mean).div_(std)
