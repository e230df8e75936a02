"""The data sets on their real files."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from synflow_pl.data import CIFAR10, CIFAR100, MNIST, FashionMNIST, ImageDataModule, TinyImageNet
from tests.data.generated import TwoClasses

REAL = [
    (MNIST, "real_mnist", 60_000),
    (FashionMNIST, "real_fashion_mnist", 60_000),
    (CIFAR10, "real_cifar10", 50_000),
    (CIFAR100, "real_cifar100", 50_000),
]


@pytest.fixture(params=REAL, ids=[kind.__name__ for kind, *_ in REAL])
def real(request: pytest.FixtureRequest) -> tuple[Any, Path, int]:
    kind, fixture, count = request.param
    return kind, request.getfixturevalue(fixture), count


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("synflow_pl.data.downloads.urlopen", refuse)


def mean_and_deviation(images: torch.Tensor) -> tuple[list[float], list[float]]:
    """Return the exact mean and deviation of each channel, from the counts of the 256 values."""
    means, deviations = [], []
    values = np.arange(256) / 255
    for channel in range(images.shape[1]):
        counts = sum(
            part[:, channel].flatten().bincount(minlength=256) for part in images.split(5000)
        )
        share = counts.numpy() / counts.sum().item()  # type: ignore[union-attr]
        means.append(share @ values)
        deviations.append(np.sqrt(share @ (values - means[-1]) ** 2))
    return means, deviations


def test_existing_real_files_are_not_downloaded_again(
    real: tuple[Any, Path, int], offline: None
) -> None:
    kind, folder, _ = real
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    kind(data_dir=str(folder)).prepare_data()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_real_data_set_has_the_published_number_of_images_of_each_class(
    real: tuple[Any, Path, int],
) -> None:
    kind, folder, count = real
    data = kind(data_dir=str(folder), val_size=5000)
    data.setup("fit")
    data.setup("test")
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    assert [len(loader.images) for loader in loaders] == [count - 5000, 5000, 10_000]
    for loader in loaders:
        images, labels = next(iter(loader))
        assert images.shape == (128, *kind.input_shape)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    for train in (True, False):
        counts = data.images(train)[1].bincount(minlength=kind.num_classes)
        assert len(counts) == kind.num_classes
        assert kind is MNIST or (counts == counts[0]).all()  # MNIST has no digit equally often


def test_mean_and_deviation_are_those_of_the_real_training_images(
    real: tuple[Any, Path, int],
) -> None:
    kind, folder, _ = real
    means, deviations = mean_and_deviation(kind(data_dir=str(folder)).images(train=True)[0])
    assert kind.mean == pytest.approx(means, abs=1e-3)
    assert kind.std == pytest.approx(deviations, abs=1e-3)


def test_images_and_labels_are_those_that_torchvision_reads(real: tuple[Any, Path, int]) -> None:
    kind, folder, _ = real
    for train in (True, False):
        theirs = kind.origin(str(folder), train=train)
        images, labels = kind(data_dir=str(folder)).images(train)
        pixels = np.asarray(theirs.data)
        assert np.array_equal(images.permute(0, 2, 3, 1).squeeze(-1).numpy(), pixels)
        assert labels.tolist() == [int(label) for label in theirs.targets]


def test_both_pipelines_give_the_same_floats_on_real_images(real: tuple[Any, Path, int]) -> None:
    kind, folder, _ = real
    batches = []
    for pipeline in ("memory", "torchvision"):
        data = kind(data_dir=str(folder), augment=False, pipeline=pipeline)
        data.setup("fit")
        loader = iter(data.train_dataloader())
        batches.append([next(loader) for _ in range(3)])
    assert all(
        torch.equal(x, y) and torch.equal(a, b) for (x, a), (y, b) in zip(*batches, strict=True)
    )


def test_only_photographs_are_augmented_and_only_when_training(real: tuple[Any, Path, int]) -> None:
    kind, folder, _ = real
    data = kind(data_dir=str(folder), val_size=100, batch_size=100)
    data.setup("fit")
    plain = kind(data_dir=str(folder), val_size=100, batch_size=100, augment=False)
    plain.setup("fit")
    (images, _), (expected, _) = (
        next(iter(data.train_dataloader())),
        next(iter(plain.train_dataloader())),
    )
    same = sum(torch.equal(image, other) for image, other in zip(images, expected, strict=True))
    assert same <= 10 if kind.crop_padding else same == 100
    assert torch.equal(next(iter(data.val_dataloader()))[0], next(iter(plain.val_dataloader()))[0])


MEMORY = """
import resource, sys, torch
from synflow_pl.data import CIFAR10, CIFAR100
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
data = getattr(sys.modules["synflow_pl.data"], sys.argv[1])(data_dir=sys.argv[2], batch_size=128)
torch.rand(1000, 1000)
before = peak()
data.prepare_data()
data.setup("fit")
for _ in data.train_dataloader():
    pass
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is kilobytes on Linux only")
@pytest.mark.parametrize("kind", [pytest.param(CIFAR10, marks=pytest.mark.slow), CIFAR100])
def test_the_images_are_in_memory_once(
    kind: type[ImageDataModule], request: pytest.FixtureRequest
) -> None:
    """Check that memory grows by 153.6 MB and at most a quarter more.

    The rest is one of CIFAR-10's five files, a few batches, and the allocator's.
    """
    folder = request.getfixturevalue(f"real_{kind.__name__.lower()}")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, kind.__name__, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert int(done.stdout) < 1.25 * 50_000 * 3 * 32 * 32 + 10e6


# -- Tiny ImageNet


def test_real_photographs_of_two_classes_are_decoded_as_pillow_does(
    real_tiny_classes: Path,
) -> None:
    data = TwoClasses(data_dir=str(real_tiny_classes))
    images, labels = data.images(train=True)
    names = sorted((real_tiny_classes / "tiny-imagenet-200" / "wnids.txt").read_text().split())
    paths = [
        path
        for name in names
        for path in sorted(
            (real_tiny_classes / "tiny-imagenet-200" / "train" / name / "images").iterdir()
        )
    ]
    assert images.shape == (1000, 3, 64, 64)
    assert labels.tolist() == [0] * 500 + [1] * 500
    for index in (0, 1, 499, 500, 999):
        assert np.array_equal(
            images[index].permute(1, 2, 0).numpy(),
            np.asarray(Image.open(paths[index]).convert("RGB")),
        )


def test_both_pipelines_give_the_same_floats_on_real_photographs(real_tiny_classes: Path) -> None:
    batches = []
    for pipeline in ("memory", "torchvision"):
        data = TwoClasses(data_dir=str(real_tiny_classes), augment=False, pipeline=pipeline)
        data.setup("fit")
        batches.append(next(iter(data.train_dataloader())))
    assert all(torch.equal(x, y) for x, y in zip(*batches, strict=True))


@pytest.mark.slow
def test_all_of_tiny_imagenet_is_read(real_tiny_imagenet: Path, offline: None) -> None:
    folder = real_tiny_imagenet / "tiny-imagenet-200"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    data = TinyImageNet(data_dir=str(real_tiny_imagenet))
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    assert [len(loader.images) for loader in loaders] == [90_000, 10_000, 10_000]  # type: ignore[union-attr]
    images, labels = data.images(train=True)
    assert labels.bincount().tolist() == [500] * 200
    assert data.images(train=False)[1].bincount().tolist() == [50] * 200
    means, deviations = mean_and_deviation(images)
    assert data.mean == pytest.approx(means, abs=1e-3)
    assert data.std == pytest.approx(deviations, abs=1e-3)
    grey = [
        index
        for index, path in enumerate(data._files(train=True)[0])
        if Image.open(path).mode == "L"
    ]
    assert len(grey) > 1000  # about two in a hundred
    assert all((images[index] == images[index][:1]).all() for index in grey)
    classes = sorted((folder / "wnids.txt").read_text().split())
    annotated = dict(
        line.split("\t")[:2]
        for line in (folder / "val" / "val_annotations.txt").read_text().splitlines()
    )
    names = sorted(annotated)
    assert data.images(train=False)[1].tolist() == [
        classes.index(annotated[name]) for name in names
    ]
    # torchvision's own reader of class folders sees the same classes in the same order.
    theirs = datasets.ImageFolder(str(folder / "train"), transform=None)
    assert theirs.classes == classes
    assert {
        path: path.stat().st_mtime_ns for path in folder.rglob("*")
    } == before  # no file was moved
