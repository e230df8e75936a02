"""Read CIFAR's pickle files (Krizhevsky 2009) without executing code that a pickle may contain."""

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

# Globals that the pickle of an array refers to, under NumPy 1 and NumPy 2.
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
    """Memory-mapped file as the unpickler reads it, which leaves out one large block.

    The unpickler copies what it reads, and the pixels are to be in memory only once. So it gets
    zeros in place of a large block, whose position is stored in ``block``.

    Args:
        mapped: Memory map of the file.
        large: Number of bytes from which on a block is left out.
    """

    def __init__(self, mapped: mmap.mmap, large: int) -> None:
        self.mapped, self.large, self.at = mapped, large, 0
        self.block: tuple[int, int] | None = None
        """Position of the block that was left out: first byte and number of bytes."""

    def peek(self, count: int) -> bytes:
        return self.mapped[self.at : self.at + count]

    def read(self, count: int) -> bytes | memoryview:
        if self._skips(count):
            # Pages of zeros that are never written to take no memory.
            return memoryview(mmap.mmap(-1, count, access=mmap.ACCESS_COPY))
        content = self.peek(count)
        self.at += len(content)
        return content

    def readinto(self, buffer: memoryview) -> int:
        if self._skips(len(buffer)):
            return len(buffer)
        content = self.peek(len(buffer))
        self.at += len(content)
        buffer[: len(content)] = content
        return len(content)

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
    """One CIFAR file: its labels, and its pixels or their position in the file."""

    path: Path
    labels: Tensor
    """Labels, int64 (N,)."""
    pixels: np.ndarray | int
    """Pixels of a small file, or the offset in bytes at which the pixels begin in the file."""

    def read_into(self, images: Tensor) -> None:
        """Read the pixels into a tensor.

        Args:
            images: Tensor to write to, uint8 (N, C, H, W), contiguous.
        """
        if isinstance(self.pixels, int):
            with self.path.open("rb") as file:
                file.seek(self.pixels)
                file.readinto(images.numpy().data.cast("B"))
        else:
            # Copied, since torch.from_numpy warns about the read-only array of a pickle.
            images.copy_(torch.from_numpy(self.pixels.reshape(images.shape).copy()))


def open_pickled(path: Path, shape: tuple[int, int, int], key: bytes, classes: int) -> CifarPickle:
    """Read the labels of a CIFAR file and locate its pixels.

    Args:
        path: Path of the file.
        shape: Shape (C, H, W) of an image.
        key: Key of the labels.
        classes: Number of classes; labels are in [0, ``classes``).

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If the content is not that of a CIFAR file with this shape and these labels.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {str(path)!r}; download the data set, or point --data.data_dir at it"
        )
    again = "; delete its folder, and the data set will be downloaded again"
    try:
        try:
            content, block = _load(path, _LARGE)
            located = block is None or block[1] == content[b"data"].nbytes
        except ValueError:
            located = False
        # Python 3 writes old protocols differently: the block is the pixels encoded as UTF-8, which
        # the unpickler has to decode.
        if not located:
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
        raise ValueError(
            f"{str(path)!r} is truncated or not a CIFAR file ({error}){again}"
        ) from error
    if wrong := [label for label in labels.tolist() if not 0 <= label < classes]:
        raise ValueError(
            f"{str(path)!r} holds the label {wrong[0]}, expected 0 to {classes - 1}{again}"
        )
    return CifarPickle(path, labels, pixels if block is None else block[0])


def _load(path: Path, large: int) -> tuple[dict[bytes, Any], tuple[int, int] | None]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        source = _Source(mapped, large)
        # With encoding="bytes" an array uses its block directly; text would be copied twice.
        content = _Unpickler(source, encoding="bytes").load()  # type: ignore[arg-type]  # it takes any buffer
    return {
        name if isinstance(name, bytes) else name.encode(): value for name, value in content.items()
    }, source.block
