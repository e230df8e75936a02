"""The data sets on their real files, and on small ones of the same layout that are always there."""

import pickle
import struct
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from synflow_pl.data import CIFAR10, MNIST, FashionMNIST, Images

REAL = [(MNIST, "real_mnist", 60_000), (FashionMNIST, "real_fashion_mnist", 60_000), (CIFAR10, "real_cifar10", 50_000)]


@pytest.fixture(params=REAL, ids=[kind.__name__ for kind, *_ in REAL])
def real(request: pytest.FixtureRequest) -> tuple[Any, Path, int]:
    kind, fixture, count = request.param
    return kind, request.getfixturevalue(fixture), count


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


# -- real files


def test_real_files_that_are_there_are_not_downloaded_again(real: tuple[Any, Path, int], offline: None) -> None:
    kind, folder, _ = real
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    kind(data_dir=str(folder)).prepare_data()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_real_data_set_has_the_published_number_of_images(real: tuple[Any, Path, int]) -> None:
    kind, folder, count = real
    data = kind(data_dir=str(folder), val_size=5000)
    data.setup("fit")
    data.setup("test")
    assert [len(data._sets[part]) for part in ("train", "val", "test")] == [count - 5000, 5000, 10_000]
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        images, labels = next(iter(loader))
        assert images.shape == (128, *kind.input_shape)
        assert images.dtype == torch.float32
        assert (labels.min(), labels.max()) == (0, kind.num_classes - 1)


def test_the_stated_mean_and_deviation_are_those_of_the_real_training_images(real: tuple[Any, Path, int]) -> None:
    kind, folder, _ = real
    pixels = np.asarray(kind(data_dir=str(folder)).dataset(True, None).data).reshape(-1, kind.input_shape[0])
    # Exact, from how often each of the 256 values occurs.
    for channel, (mean, std) in enumerate(zip(kind.mean, kind.std, strict=True)):
        share = np.bincount(pixels[:, channel], minlength=256) / len(pixels)
        values = np.arange(256) / 255
        expected = share @ values
        assert mean == pytest.approx(expected, abs=1e-3)
        assert std == pytest.approx(np.sqrt(share @ (values - expected) ** 2), abs=1e-3)


def test_only_cifar10_is_augmented_and_only_when_training(real: tuple[Any, Path, int]) -> None:
    kind, folder, _ = real
    data = kind(data_dir=str(folder), val_size=100, batch_size=100)
    plain = data.dataset(True, data.evaluation_transform)
    data.setup("fit")
    train, val = data._sets["train"], data._sets["val"]
    assert all(torch.equal(val[i][0], plain[val.indices[i]][0]) for i in range(100))
    same = [torch.equal(train[i][0], plain[train.indices[i]][0]) for i in range(100)]
    assert sum(same) <= 10 if kind is CIFAR10 else all(same)


# -- generated files


def write_idx(path: Path, array: np.ndarray) -> None:
    path.write_bytes(struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def generated(kind: type[Images], folder: Path, count: int = 20) -> np.ndarray:
    """Files in torchvision's layout with ``count`` random training and half as many test images; the training pixels (N, H, W, C)."""
    random = np.random.default_rng(0)
    channels, height, width = kind.input_shape
    pixels = random.integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    if kind is CIFAR10:
        where = folder / "cifar-10-batches-py"
        where.mkdir(parents=True)
        flat = pixels.transpose(0, 3, 1, 2).reshape(count, -1)
        fifth = count // 5
        parts = {f"data_batch_{k + 1}": slice(k * fifth, (k + 1) * fifth) for k in range(5)} | {"test_batch": slice(count // 2)}
        for name, part in parts.items():
            (where / name).write_bytes(pickle.dumps({"data": flat[part], "labels": labels[part].tolist()}))
        (where / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(label) for label in range(10)]}))
        return pixels
    where = folder / kind.__name__ / "raw"
    where.mkdir(parents=True)
    for prefix, size in (("train", count), ("t10k", count // 2)):
        write_idx(where / f"{prefix}-images-idx3-ubyte", pixels[:size, :, :, 0])
        write_idx(where / f"{prefix}-labels-idx1-ubyte", labels[:size])
    return pixels


@pytest.fixture(params=[MNIST, FashionMNIST, CIFAR10])
def small(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path, np.ndarray]:
    # The checksums are those of the real files.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_, **__: True)
    return request.param, tmp_path, generated(request.param, tmp_path)


def test_images_come_as_their_files_say(small: tuple[Any, Path, np.ndarray], offline: None) -> None:
    kind, folder, pixels = small
    data = kind(data_dir=str(folder), val_size=0, augment=False, batch_size=20)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    images = torch.stack([image for image, _ in data._sets["train"]])
    mean, std = np.array(kind.mean), np.array(kind.std)
    expected = torch.from_numpy((pixels / 255 - mean) / std).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
    assert [label for _, label in data._sets["train"]] == [*range(10), *range(10)]
    assert len(data._sets["test"]) == 10


def test_data_sets_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    pixels = {kind: generated(kind, tmp_path, count) for kind, count in ((MNIST, 10), (FashionMNIST, 30))}
    for kind in (MNIST, FashionMNIST):
        assert len(kind(data_dir=str(tmp_path)).dataset(True, None)) == len(pixels[kind])  # type: ignore[arg-type]


def test_files_that_are_missing_are_an_error_and_not_other_images(tmp_path: Path) -> None:
    for kind in (MNIST, FashionMNIST, CIFAR10):
        with pytest.raises(RuntimeError, match="not found"):
            kind(data_dir=str(tmp_path)).setup("fit")


# -- augmentation


class One(Dataset[Any]):
    """Twenty times the same image, black but for one white pixel in row 10, column 3."""

    def __init__(self, transform: Any) -> None:
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[10, 3] = 255
        self.image, self.transform = Image.fromarray(pixels), transform

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.image), 0


class Corner(CIFAR10):
    def dataset(self, train: bool, transform: Any) -> Dataset[Any]:
        return One(transform)


def places(data: CIFAR10, part: str, draws: int) -> set[tuple[int, int]]:
    """Where the white pixel comes to lie, in so many draws."""
    found = set()
    for _ in range(draws):
        image = data._sets[part][0][0]
        white = (image[0] > 0).nonzero()
        assert len(white) == 1 or part == "train"  # a crop may lose it
        found.update((int(row), int(column)) for row, column in white)
    return found


def test_a_training_image_is_shifted_by_up_to_four_pixels_and_flipped() -> None:
    torch.manual_seed(0)
    data = Corner(val_size=2)
    data.setup("fit")
    # A window of 32 in an image of 40 starts 0 to 8 pixels in, so that row 10 comes to lie at 6 to 14; column 3 goes to 0 to 7,
    # or out of the image, and a flip makes 31 less that of it.
    found = places(data, "train", 2000)
    assert {row for row, _ in found} == set(range(6, 15))
    assert {column for _, column in found} == set(range(8)) | set(range(24, 32))


def test_a_validation_or_test_image_stays_as_it_is() -> None:
    data = Corner(val_size=2)
    data.setup("fit")
    data.setup("test")
    assert places(data, "val", 20) == places(data, "test", 20) == {(10, 3)}


def test_augmentation_can_be_left_out() -> None:
    data = Corner(val_size=2, augment=False)
    data.setup("fit")
    assert places(data, "train", 20) == {(10, 3)}
