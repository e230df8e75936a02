"""Read a folder of the user's own images, resized to the input of a network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.functional import resize

__all__ = ["image_files", "resize_transform"]


def image_files(folder: Path) -> list[Path]:
    """Return the paths of the images in a folder and its subfolders, sorted.

    Args:
        folder: Path of the folder.

    Raises:
        FileNotFoundError: If there is no such folder, or it has no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"predict_dir: there is no folder {str(folder)!r}; give one that holds images"
        )
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
    if not paths:
        raise FileNotFoundError(
            f"predict_dir: the folder {str(folder)!r} holds no image ({', '.join(IMG_EXTENSIONS)})"
        )
    return paths


def resize_transform(
    size: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> transforms.Compose:
    """Return the transform of a PIL image to a normalised tensor of a given size.

    The image is resized, without distortion, to the smallest size that covers ``size``, and its
    centre is cut out.

    Args:
        size: Height and width of the tensor.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
    """
    height, width = size
    shrink = [
        transforms.Lambda(partial(_cover, size=(height, width))),
        transforms.CenterCrop((height, width)),
    ]
    return transforms.Compose([*shrink, transforms.ToTensor(), transforms.Normalize(mean, std)])


def _cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an image, without distortion, to the smallest size that covers ``size``, (H, W)."""
    height, width = size
    if image.height * width <= image.width * height:
        covering = height, height * image.width // image.height
    else:
        covering = width * image.height // image.width, width
    resized: Image.Image = resize(image, list(covering))
    return resized
