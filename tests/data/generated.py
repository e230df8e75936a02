"""Write tiny files in the layout of each data set, as its publisher wrote them."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from synflow_pl.data import (
    CIFAR10,
    CIFAR100,
    MNIST,
    FashionMNIST,
    ImageDataModule,
    ImageNet,
    TinyImageNet,
)


def pixels_of(kind: type[ImageDataModule], count: int) -> np.ndarray:
    """Return random images, uint8 (N, H, W, C)."""
    channels, height, width = kind.input_shape
    return np.random.default_rng(0).integers(
        0, 256, (count, height, width, channels), dtype=np.uint8
    )


def write_idx(path: Path, array: np.ndarray) -> None:
    path.write_bytes(
        struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    )


def mnist(kind: type[ImageDataModule], folder: Path, count: int) -> np.ndarray:
    pixels = pixels_of(kind, count)
    where = folder / kind.__name__ / "raw"
    where.mkdir(parents=True)
    for prefix, size in (("train", count), ("t10k", count // 2)):
        write_idx(where / f"{prefix}-images-idx3-ubyte", pixels[:size, :, :, 0])
        write_idx(where / f"{prefix}-labels-idx1-ubyte", (np.arange(size) % 10).astype(np.uint8))
    return pixels


def cifar(kind: type[ImageDataModule], folder: Path, count: int) -> np.ndarray:
    assert issubclass(kind, CIFAR10)
    pixels = pixels_of(kind, count)
    flat = pixels.transpose(0, 3, 1, 2).reshape(count, -1)
    where = folder / kind.origin.base_folder
    where.mkdir(parents=True)
    for names, size in ((kind.origin.train_list, count), (kind.origin.test_list, count // 2)):
        for part, (name, _) in zip(np.array_split(np.arange(size), len(names)), names, strict=True):
            content = {b"data": flat[part], kind.label_key: [int(image) % 10 for image in part]}
            (where / name).write_bytes(pickle.dumps(content, protocol=2))
    return pixels


def tiny_imagenet(kind: type[ImageDataModule], folder: Path, count: int) -> np.ndarray:
    """Write PNG files, which keep the pixels, under the names of JPEG files.

    The images belong to two classes in turn, so that the data module has to sort them.
    """
    pixels = pixels_of(kind, count)
    where = folder / "tiny-imagenet-200"
    names = ["n01", "n02"]
    (where / "val" / "images").mkdir(parents=True)
    (where / "wnids.txt").write_text("\n".join(reversed(names)))
    for image, picture in enumerate(pixels):
        name = names[image * 2 // count]
        path = where / "train" / name / "images" / f"{name}_{image}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, format="PNG")
    lines = []
    for image in range(count // 2):
        Image.fromarray(pixels[image]).save(
            where / "val" / "images" / f"val_{image}.JPEG", format="PNG"
        )
        lines.append(f"val_{image}.JPEG\t{names[image % 2]}\t0\t0\t62\t62\n")
    (where / "val" / "val_annotations.txt").write_text("".join(lines))
    return pixels


def imagenet(kind: type[ImageDataModule], folder: Path, count: int) -> np.ndarray:
    """Write images of 224x224 pixels, which are not resized."""
    pixels = pixels_of(kind, count)
    for part, size in (("train", count), ("val", count // 2)):
        for image in range(size):
            path = folder / part / ("n01" if image < size // 2 else "n02") / f"{image}.PNG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[image]).save(path)
    return pixels


class TwoClasses(TinyImageNet):
    num_classes = 2


class TwoLarge(ImageNet):
    num_classes = 2


FORMATS: dict[type[ImageDataModule], Callable[[type[ImageDataModule], Path, int], np.ndarray]] = {
    MNIST: mnist,
    FashionMNIST: mnist,
    CIFAR10: cifar,
    CIFAR100: cifar,
    TwoClasses: tiny_imagenet,
    TwoLarge: imagenet,
}
