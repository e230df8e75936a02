"""What every data set promises: its splits, its batches, and that the test set is met only at test. Told with the digits."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import Subset

from synflow_pl.data import CIFAR10, MNIST, Digits, FashionMNIST


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which part of the digits was opened, in order."""
    parts: list[str] = []
    whole = Digits.dataset

    def dataset(self: Digits, train: bool, transform: Any) -> Any:
        parts.append("train" if train else "test")
        return whole(self, train, transform)

    monkeypatch.setattr(Digits, "dataset", dataset)
    return parts


def ready(stage: str = "fit", **options: Any) -> Digits:
    data = Digits(**options)
    data.setup(stage)
    return data


def indices(data: Digits, name: str) -> list[int]:
    subset = data._sets[name]
    assert isinstance(subset, Subset)
    return list(subset.indices)


# -- the split


def test_a_tenth_is_held_out_unless_told_otherwise() -> None:
    data = ready()
    assert (len(indices(data, "train")), len(indices(data, "val"))) == (4500, 500)


@pytest.mark.parametrize("size", [1, 123, 4999])
def test_training_and_validation_share_no_image_and_leave_none_out(size: int) -> None:
    data = ready(val_size=size)
    train, val = indices(data, "train"), indices(data, "val")
    assert len(val) == size
    assert sorted(train + val) == list(range(5000))


def test_the_split_follows_the_data_s_seed_and_nothing_else() -> None:
    first = indices(ready(), "val")
    torch.manual_seed(99)
    assert indices(ready(), "val") == first
    assert indices(ready(seed=1), "val") != first


def test_splitting_draws_nothing_from_the_global_seed() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    ready()
    assert torch.equal(torch.rand(1), expected)


def test_without_validation_images_there_is_no_validation_loader() -> None:
    data = ready(val_size=0)
    assert data.val_dataloader() == []
    assert sorted(indices(data, "train")) == list(range(5000))


@pytest.mark.parametrize("size", [5000, 6000])
def test_a_split_that_leaves_nothing_to_train_on_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"val_size: {size} leaves none of the 5000 training images"):
        ready(val_size=size)


# -- the test set


@pytest.mark.parametrize(("stage", "parts"), [("fit", {"train"}), ("validate", {"train"}), ("test", {"test"}), ("predict", {"test"})])
def test_a_stage_opens_only_what_it_needs(stage: str, parts: set[str], opened: list[str]) -> None:
    data = ready(stage)
    assert set(opened) == parts
    assert ("test" in data._sets) == (stage in ("test", "predict"))


def test_the_test_set_comes_whole_and_in_order_at_test_and_predict() -> None:
    labels = [label for _, label in Digits().dataset(False, None)]  # type: ignore[attr-defined]
    for stage, loader in (("test", "test_dataloader"), ("predict", "predict_dataloader")):
        batches = getattr(ready(stage, batch_size=300), loader)()
        assert torch.cat([label for _, label in batches]).tolist() == labels


def test_validating_on_the_test_set_warns_holds_nothing_out_and_gives_the_test_images(opened: list[str]) -> None:
    data = Digits(validate_on_test=True, batch_size=1000)
    with pytest.warns(UserWarning, match=r"validate_on_test: the validation numbers of this run are test numbers"):
        data.setup("fit")
    data.setup("test")
    assert len(indices(data, "train")) == 5000
    (images, labels), (expected, expected_labels) = next(iter(data.val_dataloader())), next(iter(data.test_dataloader()))
    assert torch.equal(images, expected)
    assert torch.equal(labels, expected_labels)


def test_nothing_warns_otherwise() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ready()


# -- batches


def test_a_last_batch_that_is_not_full_is_kept() -> None:
    sizes = [len(labels) for _, labels in ready(val_size=4900, batch_size=64).train_dataloader()]
    assert sizes == [64, 36]


def test_training_images_are_shuffled_anew_and_validation_images_are_not() -> None:
    data = ready(val_size=4900, batch_size=100)
    torch.manual_seed(0)
    first, second = (next(iter(data.train_dataloader()))[1].tolist() for _ in range(2))
    assert first != second
    assert sorted(first) == sorted(second)
    first, second = (next(iter(data.val_dataloader()))[1].tolist() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("devices", "images"), [(1, 120), (2, 60), (8, 15)])
def test_a_batch_is_shared_by_the_devices(devices: int, images: int) -> None:
    data = ready(batch_size=120)
    data.trainer = SimpleNamespace(world_size=devices)  # type: ignore[assignment]
    assert data.train_dataloader().batch_size == images
    assert len(next(iter(data.val_dataloader()))[1]) == images


def test_a_batch_that_the_devices_cannot_share_evenly_is_refused() -> None:
    data = ready(batch_size=128)
    data.trainer = SimpleNamespace(world_size=3)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="batch_size: 128 images cannot be shared evenly by 3 devices"):
        data.train_dataloader()


@pytest.mark.parametrize("kind", [Digits, MNIST, FashionMNIST, CIFAR10])
@pytest.mark.parametrize(
    ("option", "least"), [({"batch_size": 0}, 1), ({"batch_size": -4}, 1), ({"val_size": -1}, 0), ({"num_workers": -1}, 0)]
)
def test_an_impossible_number_is_refused_by_name(kind: type, option: dict[str, int], least: int) -> None:
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"^{name}: {value} must be at least {least}"):
        kind(**option)


# -- where the files lie


def test_data_lies_in_a_folder_that_an_argument_or_the_environment_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SYNFLOW_DATA", str(tmp_path / "environment"))
    assert MNIST(data_dir=str(tmp_path / "argument")).data_dir == tmp_path / "argument"
    assert MNIST().data_dir == tmp_path / "environment"


@pytest.mark.parametrize("value", [None, ""])
def test_data_lies_in_the_cache_otherwise(value: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SYNFLOW_DATA", value or "")
    if value is None:
        monkeypatch.delenv("SYNFLOW_DATA")
    assert MNIST().data_dir == tmp_path / ".cache" / "synflow_pl"
    assert MNIST(data_dir="~/mine").data_dir == tmp_path / "mine"
