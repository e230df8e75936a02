"""The pickled format of CIFAR (Krizhevsky 2009): a dictionary of pixels and labels, read without
running what a pickle may ask for.
"""

from __future__ import annotations

import mmap
import pickle
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["CifarPickle", "open_pickled"]

# What an array is built from, by numpy 1 and numpy 2.
_ALLOWED = {
    (f"numpy.{core}{module}", name)
    for core in ("core.", "_core.", "")
    for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("__builtin__", "bytes")}

_LARGE = 1 << 20  # bytes


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return super().find_class(module, name)


class _Source:
    """A memory-mapped file as the unpickler reads one. Of a large block it gets as many zeros, and
    where it lies is noted: the unpickler copies what it reads, and the pixels shall be in memory
    once.

    Args:
        mapped: the file.
        large: bytes from which on a block is.
    """

    def __init__(self, mapped: mmap.mmap, large: int) -> None:
        self.mapped, self.large, self.at = mapped, large, 0
        self.block: tuple[int, int] | None = None
        """First byte and number of bytes."""

    def peek(self, count: int) -> bytes:
        return self.mapped[self.at : self.at + count]

    def read(self, count: int) -> bytes | memoryview:
        if self._skips(count):
            return memoryview(
                mmap.mmap(-1, count, access=mmap.ACCESS_COPY)
            )  # pages of zeros that take no memory
        found = self.peek(count)
        self.at += len(found)
        return found

    def readinto(self, buffer: memoryview) -> int:
        if self._skips(len(buffer)):
            return len(buffer)
        found = self.peek(len(buffer))
        self.at += len(found)
        buffer[: len(found)] = found
        return len(found)

    def readline(self) -> bytes:
        start, self.at = self.at, self.mapped.find(b"\n", self.at) + 1
        return self.mapped[start : self.at]

    def _skips(self, count: int) -> bool:
        if count < self.large or self.at + count > len(self.mapped):
            return False
        self.block = self.at, count
        self.at += count
        return True


@dataclass
class CifarPickle:
    """One file: its labels, and its pixels where they are."""

    path: Path
    labels: Tensor
    """int64 (N,)."""
    pixels: np.ndarray | int
    """The array of a small file, or where in the file the pixels begin."""

    def read_into(self, images: Tensor) -> None:
        """Read the pixels to their place, uint8 (N, C, H, W)."""
        if isinstance(self.pixels, int):
            with self.path.open("rb") as file:
                file.seek(self.pixels)
                file.readinto(images.numpy().data.cast("B"))
        else:
            images.copy_(
                torch.from_numpy(self.pixels.reshape(images.shape).copy())
            )  # the array of a pickle is read-only


def open_pickled(path: Path, shape: tuple[int, int, int], key: bytes, classes: int) -> CifarPickle:
    """Look into one file.

    Args:
        path: of the file.
        shape: (C, H, W) of an image.
        key: of the labels.
        classes: labels lie in 0 ... ``classes`` - 1.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it does not hold that.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {str(path)!r}; download the data set, or point --data.data_dir at it"
        )
    again = "; delete its folder, and the data set will be downloaded again"
    try:
        try:
            content, block = _load(path, _LARGE)
            found = block is None or block[1] == content[b"data"].nbytes
        except ValueError:
            found = False
        if not found:  # Python 3 writes old protocols otherwise: the block is the pixels as UTF-8, and has to be read
            content, block = _load(path, path.stat().st_size + 1)
        pixels, labels = content[b"data"], torch.tensor(content[key], dtype=torch.int64)
        if (
            pixels.dtype != np.uint8
            or not pixels.flags.c_contiguous
            or pixels.size != len(labels) * prod(shape)
        ):
            raise ValueError(
                f"{len(labels)} labels, and pixels of {pixels.dtype} in the shape {pixels.shape}"
            )
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        IndexError,
        OverflowError,
    ) as error:
        raise ValueError(f"{str(path)!r} is truncated or no CIFAR file ({error}){again}") from error
    if wrong := [label for label in labels.tolist() if not 0 <= label < classes]:
        raise ValueError(
            f"{str(path)!r} holds the label {wrong[0]}, expected 0 to {classes - 1}{again}"
        )
    return CifarPickle(path, labels, pixels if block is None else block[0])


def _load(path: Path, large: int) -> tuple[dict[bytes, Any], tuple[int, int] | None]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        source = _Source(mapped, large)
        # Strings as bytes, for then an array takes its block as it is; as text it would be copied
        # twice.
        content = _Unpickler(source, encoding="bytes").load()  # type: ignore[arg-type]  # it takes any buffer
    return {
        name if isinstance(name, bytes) else name.encode(): value for name, value in content.items()
    }, source.block
