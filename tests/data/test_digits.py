import gzip
from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from synflow_pl.data import Digits


def test_5000_training_and_1000_test_images_have_every_digit_equally_often() -> None:
    data = Digits()
    for train, each in ((True, 500), (False, 100)):
        images = data.dataset(train, None)
        labels = Counter(images[index][1] for index in range(len(images)))  # type: ignore[arg-type]
        assert labels == dict.fromkeys(range(10), each)


def test_a_batch_has_normalised_images_and_labels() -> None:
    data = Digits(batch_size=32)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype) == ((32, 1, 28, 28), torch.float32)
    assert (labels.shape, labels.dtype) == ((32,), torch.int64)
    assert images.shape[1:] == Digits.input_shape
    # The normalised values of black and white, whose pixels are 0 and 1.
    assert images.min().item() == pytest.approx((0 - 0.1307) / 0.3081)
    assert images.max().item() == pytest.approx((1 - 0.1307) / 0.3081)


def test_training_images_have_mean_zero_and_deviation_one() -> None:
    data = Digits(val_size=0, batch_size=5000)
    data.setup("fit")
    images, _ = next(iter(data.train_dataloader()))
    assert len(images) == 5000
    assert images.mean().item() == pytest.approx(0, abs=0.02)
    assert images.std().item() == pytest.approx(1, abs=0.02)


def test_the_digits_need_no_download_and_no_folder(tmp_path: Path) -> None:
    data = Digits(data_dir=str(tmp_path / "none"))
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert list(tmp_path.iterdir()) == []


def read_idx(path: Path) -> np.ndarray:
    """Read an array in IDX format, independently of the package.

    The format is two zeros, the type, the number of axes, their sizes as big-endian int32, and the
    bytes.
    """
    content = gzip.decompress(path.read_bytes())
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


@pytest.mark.parametrize(
    ("part", "prefix", "each"), [("train", "train", 500), ("test", "t10k", 100)]
)
def test_the_digits_are_the_first_of_each_in_the_original_mnist(
    part: str, prefix: str, each: int, real_mnist: Path
) -> None:
    raw = real_mnist / "MNIST" / "raw"
    images, labels = (
        read_idx(raw / f"{prefix}-images-idx3-ubyte.gz"),
        read_idx(raw / f"{prefix}-labels-idx1-ubyte.gz"),
    )
    first = np.sort(np.concatenate([np.flatnonzero(labels == digit)[:each] for digit in range(10)]))
    with (
        (files("synflow_pl.data") / "digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as archive,
    ):
        assert archive[f"{part}_images"].dtype == np.uint8
        assert archive[f"{part}_labels"].dtype == np.int64
        np.testing.assert_array_equal(archive[f"{part}_labels"], labels[first])
        np.testing.assert_array_equal(archive[f"{part}_images"], images[first])
