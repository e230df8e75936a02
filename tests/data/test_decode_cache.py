"""Cache of decoded images: created once, reused, and replaced if it belongs to other files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from synflow_pl.data import decode_cache as module
from synflow_pl.data.decode_cache import decode_cached

SHAPE = (3, 8, 8)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in range(5)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of images that are decoded in each call."""
    counts: list[int] = []
    whole = module._decode_all
    monkeypatch.setattr(
        module, "_decode_all", lambda paths, *rest: (counts.append(len(paths)), whole(paths, *rest))
    )
    return counts


def pixels(paths: list[Path]) -> torch.Tensor:
    return torch.stack(
        [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths]
    )


def test_images_are_decoded_once_and_in_order(
    files: list[Path], times: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", 2)  # three chunks
    for _ in range(2):
        assert torch.equal(decode_cached(files, SHAPE, tmp_path / "cache"), pixels(files))
    assert times == [5]
    assert len(list(tmp_path.glob("cache-*.npy"))) == 1


def change_content(files: list[Path]) -> list[Path]:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(files[2])
    return files


def touch(files: list[Path]) -> list[Path]:
    os.utime(files[0], (1, 1))
    return files


def remove(files: list[Path]) -> list[Path]:
    return files[1:]


def reorder(files: list[Path]) -> list[Path]:
    return files[::-1]


@pytest.mark.parametrize("change", [change_content, touch, remove, reorder])
def test_a_cache_of_other_files_is_replaced(
    change: object, files: list[Path], times: list[int], tmp_path: Path
) -> None:
    decode_cached(files, SHAPE, tmp_path / "cache")
    files = change(files)  # type: ignore[operator]
    assert torch.equal(decode_cached(files, SHAPE, tmp_path / "cache"), pixels(files))
    assert times == [5, len(files)]
    assert len(list(tmp_path.glob("cache-*.npy"))) == 1


@pytest.mark.parametrize("keep", [0, 50, 200, -1])
def test_a_truncated_cache_is_replaced(
    keep: int, files: list[Path], times: list[int], tmp_path: Path
) -> None:
    decode_cached(files, SHAPE, tmp_path / "cache")
    (cache,) = tmp_path.glob("cache-*.npy")
    cache.write_bytes(cache.read_bytes()[:keep])
    assert torch.equal(decode_cached(files, SHAPE, tmp_path / "cache"), pixels(files))
    assert times == [5, 5]


def test_two_caches_in_one_folder_do_not_interfere(
    files: list[Path], times: list[int], tmp_path: Path
) -> None:
    for _ in range(2):
        decode_cached(files[:2], SHAPE, tmp_path / "train")
        decode_cached(files[2:], SHAPE, tmp_path / "val")
    assert times == [2, 3]


def test_changes_of_the_images_are_not_written_to_the_cache(
    files: list[Path], tmp_path: Path
) -> None:
    decode_cached(files, SHAPE, tmp_path / "cache").zero_()
    assert torch.equal(decode_cached(files, SHAPE, tmp_path / "cache"), pixels(files))


def test_an_image_of_another_size_is_named_in_the_error_and_leaves_no_cache(
    files: list[Path], tmp_path: Path
) -> None:
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(files[3])
    with pytest.raises(
        ValueError, match=r"3.png' is an image of shape \(3, 8, 9\), expected \(3, 8, 8\)"
    ):
        decode_cached(files, SHAPE, tmp_path / "cache")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".png"] * 5
