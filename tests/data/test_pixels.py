"""Image files of every mode are decoded to the 8-bit image that they show, or refused by name."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from synflow_pl.data import Digits, ImageDataModule
from synflow_pl.data.pixels import UnreadableImage, decode
from synflow_pl.data.torchvision_loader import ImageFiles
from tests.data.generated import FORMATS, TwoClasses, TwoLarge

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 250, (7, 5), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (7, 5, 3), dtype=np.uint8)
TURNED: dict[int, Any] = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
"""Function from stored pixels to those that a viewer shows, by EXIF orientation."""


def decoded(path: Path, channels: int) -> np.ndarray:
    return np.asarray(decode(path, channels))


def wide(dtype: Any = np.uint16) -> np.ndarray:
    return GREY.astype(dtype) * 257


def write_tiff(
    path: Path,
    pixels: np.ndarray,
    *,
    white: bool = False,
    kind: int = 1,
    samples: int = 1,
    extra: int | None = None,
) -> None:
    """Write an uncompressed TIFF with tags that Pillow does not write.

    ``white`` means that zero is white. ``kind`` is 1 for unsigned, 2 for signed and 3 for
    floating-point pixels.
    """
    data = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    bits = 8 * pixels.itemsize
    tags = [
        (256, 5),
        (257, 7),
        (258, bits),
        (259, 1),
        (262, int(not white)),
        (273, 8),
        (277, samples),
        (278, 7),
    ]
    tags += [(279, pixels.nbytes), *([] if extra is None else [(338, extra)]), (339, kind)]
    entries = [
        struct.pack(
            "<HHIHH",
            tag,
            3,
            samples if tag == 258 else 1,
            value,
            value if tag == 258 and samples == 2 else 0,
        )
        for tag, value in tags
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + b"\0" * 4
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory)


# -- unambiguous pixels


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_grey_of_16_bits_is_scaled_to_8(name: str, tmp_path: Path) -> None:
    pixels = wide() if name != "a.pgm" else wide(np.int32)
    Image.fromarray(pixels).save(tmp_path / name)
    assert np.array_equal(decoded(tmp_path / name, 1), GREY)
    assert np.array_equal(decoded(tmp_path / name, 3), np.stack([GREY] * 3, -1))


def test_grey_of_16_bits_is_rounded_and_keeps_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 128, 129, 65535, 65406, 65407]], np.uint16)).save(
        tmp_path / "a.png"
    )
    assert decoded(tmp_path / "a.png", 1).tolist() == [
        [0, 0, 1, 255, 254, 255]
    ]  # 257 steps of 16 bits are one of 8


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "webp"])
def test_a_grey_picture_is_the_same_in_every_mode(mode: str, ending: str, tmp_path: Path) -> None:
    pixels = GREY if mode != "1" else (GREY > 100).astype(np.uint8) * 255
    path = tmp_path / f"a.{ending}"
    try:
        Image.fromarray(pixels).convert(mode).save(
            path, **({"lossless": True} if ending == "webp" else {})
        )
    except (OSError, ValueError):
        pytest.skip(f"Pillow writes no {ending} of mode {mode}")
    assert np.array_equal(decoded(path, 1), pixels)
    assert np.array_equal(decoded(path, 3), np.stack([pixels] * 3, -1))


@pytest.mark.parametrize(
    ("mode", "within"), [("RGB", 0), ("RGBA", 0), ("CMYK", 1), ("YCbCr", 3), ("RGBX", 0)]
)
def test_a_coloured_picture_is_the_same_in_every_mode(
    mode: str, within: int, tmp_path: Path
) -> None:
    Image.fromarray(COLOUR).convert(mode).save(tmp_path / "a.tif")
    assert np.abs(decoded(tmp_path / "a.tif", 3).astype(int) - COLOUR).max() <= within


def test_a_palette_of_colours_gives_its_colours(tmp_path: Path) -> None:
    picture = Image.fromarray(COLOUR).quantize(16)
    picture.save(tmp_path / "a.png")
    assert np.array_equal(decoded(tmp_path / "a.png", 3), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "RGBA"])
def test_a_picture_is_turned_upright_by_its_exif_orientation(
    orientation: int, mode: str, ending: str, tmp_path: Path
) -> None:
    if (mode, ending) == ("I;16", "webp"):
        pytest.skip("WebP has no 16 bits")
    path, exif = tmp_path / f"a.{ending}", Image.Exif()
    exif[0x0112] = orientation
    pixels = COLOUR if mode.startswith("RGB") else GREY
    picture = Image.fromarray(wide()) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    picture.save(path, exif=exif, **({"lossless": True} if ending == "webp" else {}))
    assert np.array_equal(decoded(path, 3 if pixels.ndim == 3 else 1), TURNED[orientation](pixels))


@pytest.mark.parametrize("orientation", TURNED)
def test_a_photograph_is_turned_upright_by_its_exif_orientation(
    orientation: int, tmp_path: Path
) -> None:
    steps = np.zeros((32, 48, 3), np.uint8)
    steps[:16, :24], steps[16:, 24:] = 255, 128  # smooth, so that JPEG keeps it
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(steps).save(tmp_path / "a.jpg", exif=exif, quality=100)
    expected = TURNED[orientation](steps)
    found = decoded(tmp_path / "a.jpg", 3)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 3


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0no directory at all", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"]
)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.filterwarnings(
    "ignore:Corrupt EXIF data", "ignore:.*has EXIF data that cannot be read"
)
def test_a_picture_with_damaged_exif_data_is_not_turned(
    exif: bytes, ending: str, tmp_path: Path
) -> None:
    Image.new("RGB", (48, 32), (9, 99, 199)).save(tmp_path / f"a.{ending}", exif=exif, quality=100)
    found = decoded(tmp_path / f"a.{ending}", 3)
    assert found.shape == (32, 48, 3)
    assert np.abs(found.astype(int) - (9, 99, 199)).max() <= 3


def test_damaged_exif_data_is_named_in_a_warning(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=b"no directory at all")
    with pytest.warns(UserWarning, match=r"a\.png' has EXIF data that cannot be read"):
        decode(tmp_path / "a.png", 3)


def test_an_opaque_alpha_channel_and_an_unused_transparent_colour_change_nothing(
    tmp_path: Path,
) -> None:
    Image.fromarray(GREY).save(tmp_path / "unused.png", transparency=255)
    Image.fromarray(GREY).convert("P").save(
        tmp_path / "palette.png", transparency=bytes([255] * 256)
    )
    write_tiff(
        tmp_path / "premultiplied.tif",
        np.stack([GREY, np.full_like(GREY, 255)], -1),
        samples=2,
        extra=1,
    )
    for path in tmp_path.iterdir():
        assert np.array_equal(decoded(path, 1), GREY), path


# -- ambiguous pixels


def transparent(path: Path, how: str) -> None:
    if how == "alpha":
        picture = Image.fromarray(COLOUR).convert("RGBA")
        picture.putpixel((2, 3), (1, 2, 3, 254))
        picture.save(path)
    elif how == "grey alpha":
        Image.fromarray(np.stack([GREY, GREY], -1)).save(path)
    elif how == "colour key":
        Image.fromarray(COLOUR).save(path, transparency=tuple(int(value) for value in COLOUR[3, 2]))
    elif how == "grey key":
        Image.fromarray(GREY).save(path, transparency=int(GREY[3, 2]))
    elif how == "16-bit key":
        Image.fromarray(wide()).save(path, transparency=int(wide()[3, 2]))
    elif how == "palette":
        Image.fromarray(GREY).convert("P").save(path, transparency=int(GREY[3, 2]))
    elif how == "palette table":
        Image.fromarray(GREY).convert("P").save(
            path, transparency=bytes([255] * int(GREY[3, 2]) + [100])
        )


@pytest.mark.parametrize(
    "how",
    ["alpha", "grey alpha", "colour key", "grey key", "16-bit key", "palette", "palette table"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_pixel_is_refused(how: str, channels: int, tmp_path: Path) -> None:
    transparent(tmp_path / "a.png", how)
    with pytest.raises(
        ValueError,
        match=r"a\.png' has transparent pixels, and the background behind them is not known",
    ):
        decode(tmp_path / "a.png", channels)


def test_pixels_with_an_unknown_value_of_white_are_refused(tmp_path: Path) -> None:
    write_tiff(tmp_path / "float.tif", GREY.astype(np.float32) / 255, kind=3)
    write_tiff(tmp_path / "int32.tif", wide(np.int32), kind=2)
    write_tiff(tmp_path / "uint32.tif", wide(np.uint32))
    write_tiff(tmp_path / "int16.tif", wide(np.int16), kind=2)
    write_tiff(tmp_path / "int8.tif", GREY, kind=2)
    write_tiff(tmp_path / "zero_is_white16.tif", wide(), white=True)  # Pillow does not invert it
    Image.frombytes("LAB", (5, 7), COLOUR.tobytes()).save(tmp_path / "lab.tif")
    for path in tmp_path.iterdir():
        for channels in (1, 3):
            with pytest.raises(
                UnreadableImage, match=rf"{path.name}' (has|is) .*; save it "
            ) as refused:
                decode(path, channels)
        assert "\n" not in str(refused.value)
    write_tiff(tmp_path / "zero_is_white8.tif", GREY, white=True)
    assert np.array_equal(decoded(tmp_path / "zero_is_white8.tif", 1), 255 - GREY)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp", "a.bmp"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_file_that_is_not_a_complete_image_is_refused(name: str, tmp_path: Path) -> None:
    Image.fromarray(RANDOM.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for content in (b"", b"no image", whole[:30], whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableImage, match=rf"{name}' cannot be read as an image"):
            decode(tmp_path / name, 3)


# -- every place where images are read


def odd_files(folder: Path, shape: tuple[int, int]) -> dict[str, Path]:
    """Write one picture as 8-bit grey, 16-bit grey and rotated, under names of JPEG files."""
    pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures: dict[str, tuple[Image.Image, Any]] = {
        "a8.JPEG": (Image.fromarray(pixels), {}),
        "b16.JPEG": (Image.fromarray(pixels.astype(np.uint16) * 257), {}),
        "c_turned.JPEG": (Image.fromarray(np.rot90(pixels)), {"exif": exif}),
    }
    for name, (picture, options) in pictures.items():
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name, format="PNG", **options)
    return {name: folder / name for name in pictures}


def read_all(data: ImageDataModule) -> None:
    data.setup("fit")
    for _ in data.train_dataloader():
        pass


@pytest.mark.parametrize("pipeline", ["memory", "torchvision"])
@pytest.mark.parametrize("kind", [TwoClasses, TwoLarge])
def test_training_images_of_every_mode_equal_the_8_bit_picture(
    kind: Any, pipeline: Any, tmp_path: Path
) -> None:
    if kind is TwoLarge and pipeline == "memory":
        pytest.skip("ImageNet is never held in memory")
    FORMATS[kind](kind, tmp_path, 4)
    folder = tmp_path / (
        "tiny-imagenet-200/train/n01/images" if kind is TwoClasses else "train/n01"
    )
    odd_files(folder, kind.input_shape[1:])
    data = kind(
        data_dir=str(tmp_path),
        val_size=0,
        batch_size=7,
        pipeline=pipeline,
        augment=False,
        num_workers=0,
    )
    data.setup("fit")
    names = sorted(path.name for path in folder.iterdir())
    order = data.split["train"].tolist()
    source = data._source(train=True)
    ((images, _),) = source.read([(torch.tensor(order), None)])
    first, *others = (
        images[names.index(name)] for name in ("a8.JPEG", "b16.JPEG", "c_turned.JPEG")
    )
    assert all(torch.equal(first, other) for other in others)
    transparent(folder / "d.png", "alpha")
    (folder / "d.png").rename(folder / "d.JPEG")
    with pytest.raises(ValueError, match=r"d\.JPEG' has transparent pixels"):
        read_all(kind(data_dir=str(tmp_path), val_size=0, pipeline=pipeline, num_workers=0))


def test_predictions_are_equal_for_images_of_every_mode(tmp_path: Path) -> None:
    odd_files(tmp_path, (28, 28))
    data = Digits(predict_dir=str(tmp_path))
    data.setup("predict")
    ((images, _),) = data.predict_dataloader()
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_refused_image_in_a_worker_process_is_reported_in_one_sentence(
    workers: int, tmp_path: Path
) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(GREY).save(tmp_path / name)
    transparent(tmp_path / "b.png", "alpha")
    data = Digits(predict_dir=str(tmp_path), num_workers=workers)
    data.setup("predict")
    with pytest.raises(UnreadableImage) as refused:
        list(data.predict_dataloader())
    data.teardown("predict")
    assert str(refused.value).startswith(f"'{tmp_path / 'b.png'}' has transparent pixels")
    assert "Traceback" not in str(refused.value)


def test_image_files_outside_a_loader_raise_the_error(tmp_path: Path) -> None:
    transparent(tmp_path / "a.png", "alpha")
    with pytest.raises(UnreadableImage, match="transparent"):
        ImageFiles([tmp_path / "a.png"], torch.tensor([0]), None)[0]
