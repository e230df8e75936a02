"""Read the IDX format of MNIST (LeCun et al. 1998).

A file consists of two zero bytes, the data type, the number of axes, the size of each axis, and the
data.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["read_idx"]

_BYTES = 8  # code of the data type unsigned byte


def read_idx(path: Path, axes: int) -> Tensor:
    """Return the array in an uncompressed IDX file, read without a second copy.

    Args:
        path: Path of the file.
        axes: Number of axes that the array must have.

    Returns:
        The array, uint8, with ``axes`` dimensions.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If the file is not an IDX file of bytes with this number of axes, or is
            incomplete.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {str(path)!r}; download the data set, or point --data.data_dir at it"
        )
    start = 4 + 4 * axes
    header = path.open("rb").read(start)
    if len(header) < start or header[:4] != bytes([0, 0, _BYTES, axes]):
        raise ValueError(
            f"{str(path)!r} is not an IDX file of bytes along {axes} axes; delete it, and it will"
            " be downloaded again"
        )
    shape = np.frombuffer(header, ">i4", axes, offset=4).tolist()
    size, expected = path.stat().st_size, start + prod(shape)
    if size != expected:
        raise ValueError(
            f"{str(path)!r} has {size:,} bytes, and an array of shape {tuple(shape)} has"
            f" {expected:,}; delete it, and it will be"
            " downloaded again"
        )
    return torch.from_numpy(np.fromfile(path, np.uint8, offset=start)).view(shape)
