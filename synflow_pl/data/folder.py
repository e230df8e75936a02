"""Folder: images of one's own in files, made to fit a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS

__all__ = ["fitting", "image_files"]


def image_files(folder: Path) -> list[Path]:
    """The images in a folder, and of those within it, by name.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"predict_on: there is no folder {str(folder)!r}; give one that holds images")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
    if not found:
        raise FileNotFoundError(f"predict_on: the folder {str(folder)!r} holds no image ({', '.join(IMG_EXTENSIONS)})")
    return found


def fitting(size: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> transforms.Compose:
    """A PIL image to a normalised tensor: its shorter side brought to that of ``size``, (H, W), and the middle cut out."""
    shrink = [transforms.Resize(min(size)), transforms.CenterCrop(tuple(size))]
    return transforms.Compose([*shrink, transforms.ToTensor(), transforms.Normalize(mean, std)])
