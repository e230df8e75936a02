"""Decode image files of any mode to upright 8-bit images, grey or RGB."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["UnreadableImage", "decode"]

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that undoes each EXIF orientation."""
_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_BYTES = ("1", "L", "P", "RGB", "RGBX", "LA", "La", "PA", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV")
"""Modes with at most 8 bits per channel, which Pillow converts to grey and RGB without clipping."""
_TRANSPARENT = (
    "has transparent pixels, and the background behind them is not known; save it without"
    " transparency"
)


class UnreadableImage(ValueError):
    """An image file that cannot be decoded, or whose pixels have no unambiguous 8-bit value."""


def decode(path: Path, channels: int) -> Image.Image:
    """Decode an image file to 8 bits per channel, turned upright by its EXIF orientation.

    Grey images of 16 bits are scaled by 255 / 65535 and rounded; of colours of 16 bits Pillow keeps
    the upper 8. An alpha channel is dropped if it is opaque everywhere. If EXIF data is damaged,
    the image is not turned, and a warning names the file. Only the first page of several is read.

    Args:
        path: Path of the file.
        channels: Number of channels: 1 converts to grey (mode L), 3 to RGB.

    Raises:
        UnreadableImage: If the file cannot be decoded, has a transparent pixel, or has
            floating-point, signed or 32-bit pixels, whose values for black and white are not stored
            in it.
    """
    try:
        # Passed as an open file: of a path, Pillow maps the file into memory, and then swaps width
        # and height of a rotated TIFF.
        with path.open("rb") as file, Image.open(file) as image:
            image.load()
    except Exception as error:  # the errors of Pillow's decoders have no common base class
        raise UnreadableImage(
            f"{str(path)!r} cannot be read as an image ({error}); replace it by a whole one"
        ) from error
    try:
        bytewise = _scaled(image) if image.mode in _WIDE else _opaque(image)
    except ValueError as error:
        raise UnreadableImage(f"{str(path)!r} {error}") from error
    return _upright(bytewise, image, path).convert("L" if channels == 1 else "RGB")


def _opaque(image: Image.Image) -> Image.Image:
    """Remove the alpha channel of an image with at most 8 bits per channel.

    Raises:
        ValueError: If the 8-bit value of a pixel is ambiguous.
    """
    if image.mode == "F":
        raise ValueError(
            "has floating-point pixels, and whether white is 1 or 255 is not stored in it; save"
            " it with 8 or 16 bits per channel"
        )
    if image.mode not in _BYTES:
        raise ValueError(
            f"is an image of mode {image.mode}, which Pillow cannot convert to RGB; save it as"
            " 8-bit grey or RGB"
        )
    if any(kind != 1 for kind in _tag(image, _SAMPLE_FORMAT, 1)):
        raise ValueError(
            "has signed pixels, and which value is black is not stored in it; save it with"
            " unsigned 8 or 16 bits per channel"
        )
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise ValueError(_TRANSPARENT)
    return image


def _scaled(image: Image.Image) -> Image.Image:
    """Scale a 16-bit grey image to 8 bits.

    Raises:
        ValueError: If white is not 65535 in this format, or a pixel is transparent.
    """
    plain = image.format == "TIFF" and image.mode != "I"
    plain = plain and (_tag(image, _BITS, 16), _tag(image, _PHOTOMETRIC, 1)) == ((16,), (1,))
    if not (plain or image.format in ("PNG", "PPM")):
        raise ValueError(
            f"is a {image.format} of mode {image.mode} with {_tag(image, _BITS, 16)[0]} bits per"
            " pixel, and which value is white is not"
            " known; save it as 8-bit grey, or as a PNG of 16 bits"
        )
    pixels = np.asarray(image).astype(np.int64)
    if (pixels == image.info.get("transparency")).any():
        raise ValueError(_TRANSPARENT)
    return Image.fromarray(((pixels * 255 + 32767) // 65535).astype(np.uint8))


def _tag(image: Image.Image, tag: int, default: int) -> tuple[int, ...]:
    """Return the values of a TIFF tag, one per channel, or ``(default,)`` if there are none."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return value if isinstance(value, tuple) else (value,)


def _upright(image: Image.Image, source: Image.Image, path: Path) -> Image.Image:
    """Turn ``image`` by the EXIF orientation of ``source``.

    Pillow has already applied the orientation of a TIFF.
    """
    try:
        orientation = source.getexif().get(_ORIENTATION, 1)
    except (
        SyntaxError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        OSError,
        struct.error,
    ) as error:
        warnings.warn(
            f"{str(path)!r} has EXIF data that cannot be read ({error}); the image is taken as it"
            " is stored",
            stacklevel=2,
        )
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
