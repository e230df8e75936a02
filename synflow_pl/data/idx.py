"""The IDX format of MNIST (LeCun et al. 1998): two zeros, the type, the number of axes, their
sizes, then the bytes.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["read_idx"]

_BYTES = 8  # the code of unsigned bytes


def read_idx(path: Path, axes: int) -> Tensor:
    """The array in an uncompressed file, read straight into its place.

    Args:
        path: of the file.
        axes: how many it must have.

    Returns:
        uint8, of as many dimensions as there are axes.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is no such array, or not all of it.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {str(path)!r}; download the data set, or point --data.data_dir at it"
        )
    start = 4 + 4 * axes
    header = path.open("rb").read(start)
    if len(header) < start or header[:4] != bytes([0, 0, _BYTES, axes]):
        raise ValueError(
            f"{str(path)!r} is no IDX file of bytes along {axes} axes; delete it, and it will be"
            " downloaded again"
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
