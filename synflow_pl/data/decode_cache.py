"""Cache of decoded images: many small image files as one array that later runs map into memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from tqdm import tqdm

from synflow_pl.data.downloads import atomic_path
from synflow_pl.data.pixels import decode

__all__ = ["decode_cached"]

_DECODER = b"2"  # part of the fingerprint; incremented when decode() changes the pixels of a file
_CHUNK = 256  # images that one thread decodes at a time


def decode_cached(paths: Sequence[Path], shape: tuple[int, int, int], cache: Path) -> Tensor:
    """Return the images in files, from a cache file that is created if necessary.

    The cache is created if it does not exist, is incomplete, or belongs to other files or to
    earlier versions of these files.

    Args:
        paths: Paths of the image files, in order; decoded in as many threads as there are cores.
        shape: Shape (C, H, W) of every image.
        cache: Path of the cache file, to which a fingerprint of the files and ``.npy`` are
            appended.

    Returns:
        Images, uint8 (N, C, H, W), mapped from the cache copy-on-write: changes are not saved.

    Raises:
        ValueError: If a file cannot be decoded unambiguously, or is an image of another shape.
        OSError: If the cache cannot be written.
    """
    path = cache.with_name(f"{cache.name}-{_fingerprint(paths)}.npy")
    try:
        return _mapped(path, (len(paths), *shape))
    except FileNotFoundError:
        pass
    except (ValueError, EOFError) as error:
        rank_zero_info(f"The cache {path} is not whole ({error}) and is created again.")
    stale = [other for other in path.parent.glob(f"{cache.name}-*.npy") if other != path]
    size = len(paths) * int(np.prod(shape))
    rank_zero_info(f"Decoding {len(paths):,} images once, to {path} ({size / 1e6:,.0f} MB)")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(paths), *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        _decode_all(paths, shape, file)
    for other in stale:
        other.unlink(missing_ok=True)
    return _mapped(path, (len(paths), *shape))


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    if array.shape != shape or array.dtype != np.uint8:
        raise ValueError(f"it holds {array.dtype} of shape {array.shape}")
    return torch.from_numpy(array)


def _fingerprint(paths: Sequence[Path]) -> str:
    """Return a hash of the names, sizes and modification times of files."""
    digest = hashlib.blake2b(_DECODER, digest_size=8)
    for path in paths:
        status = os.stat(path)  # faster than Path.stat, for a hundred thousand files
        digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _decode_all(paths: Sequence[Path], shape: tuple[int, int, int], file: IO[bytes]) -> None:
    def chunk(begin: int) -> np.ndarray:
        own = paths[begin : begin + _CHUNK]
        images = np.empty((len(own), *shape), np.uint8)
        for place, path in zip(images, own, strict=True):
            place[:] = _array(path, shape)
        return images

    pool = ThreadPoolExecutor(os.cpu_count())  # Pillow releases the GIL while it decodes
    try:
        with tqdm(total=len(paths), desc="Decoding", unit="image", leave=False) as bar:
            for images in pool.map(chunk, range(0, len(paths), _CHUNK)):
                file.write(images.data)
                bar.update(len(images))
    finally:
        pool.shutdown(cancel_futures=True)


def _array(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    array = np.atleast_3d(np.asarray(decode(path, shape[0]))).transpose(2, 0, 1)
    if array.shape != shape:
        raise ValueError(f"{str(path)!r} is an image of shape {array.shape}, expected {shape}")
    return array
