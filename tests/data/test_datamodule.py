"""Properties of every data module: splits, batches, and a test set that is opened only to test."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from synflow_pl import data as room
from synflow_pl.data import MNIST, Digits
from synflow_pl.data.loader import Loader

KINDS = [getattr(room, name) for name in room.__all__ if name != "ImageDataModule"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the parts of the digits that are opened, in order."""
    parts: list[str] = []
    whole = Digits.images

    def images(self: Digits, train: bool) -> Any:
        parts.append("train" if train else "test")
        return whole(self, train)

    monkeypatch.setattr(Digits, "images", images)
    return parts


def ready(stage: str = "fit", **options: Any) -> Digits:
    data = Digits(**options)
    data.setup(stage)
    return data


def indices(data: Digits, name: str) -> list[int]:
    return data.split[name].tolist()


class Augmented(Digits):
    crop_padding = 2


@pytest.fixture(autouse=True)
def _no_run_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


# -- the split


def test_a_tenth_is_held_out_by_default() -> None:
    data = ready()
    assert (len(indices(data, "train")), len(indices(data, "val"))) == (4500, 500)


@pytest.mark.parametrize("size", [1, 123, 4999])
def test_training_and_validation_share_no_image_and_leave_none_out(size: int) -> None:
    data = ready(val_size=size)
    train, val = indices(data, "train"), indices(data, "val")
    assert len(val) == size
    assert sorted(train + val) == list(range(5000))


def test_the_split_depends_only_on_the_seed_of_the_data() -> None:
    first = indices(ready(), "val")
    torch.manual_seed(99)
    assert indices(ready(), "val") == first
    assert indices(ready(seed=1), "val") != first


def test_splitting_leaves_the_global_generator_unchanged() -> None:
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
def test_a_split_without_training_images_is_refused(size: int) -> None:
    with pytest.raises(
        ValueError, match=f"val_size: {size} leaves none of the 5000 training images"
    ):
        ready(val_size=size)


# -- the test set


@pytest.mark.parametrize("pipeline", ["memory", "torchvision"])
@pytest.mark.parametrize(
    ("stage", "part"),
    [("fit", "train"), ("validate", "train"), ("test", "test"), ("predict", "test")],
)
def test_a_stage_opens_only_what_it_needs_and_once(
    stage: str, part: str, pipeline: str, opened: list[str]
) -> None:
    data = ready(stage, pipeline=pipeline)
    loaders = {"fit": ["train", "val"], "validate": ["val"]}.get(stage, [stage])
    for loader in loaders:
        next(iter(getattr(data, f"{loader}_dataloader")()))
    assert opened == [part]


def test_test_and_predict_use_the_whole_test_set_in_order() -> None:
    labels = Digits().images(train=False)[1].tolist()
    for stage, loader in (("test", "test_dataloader"), ("predict", "predict_dataloader")):
        batches = getattr(ready(stage, batch_size=300), loader)()
        assert torch.cat([label for _, label in batches]).tolist() == labels


def test_validating_on_the_test_set_warns_and_holds_nothing_out(
    opened: list[str],
) -> None:
    data = Digits(validate_on_test=True, batch_size=1000)
    with pytest.warns(
        UserWarning, match=r"validate_on_test: the validation numbers of this run are test numbers"
    ):
        data.setup("fit")
    data.setup("test")
    assert len(indices(data, "train")) == 5000
    (images, labels), (expected, expected_labels) = (
        next(iter(data.val_dataloader())),
        next(iter(data.test_dataloader())),
    )
    assert torch.equal(images, expected)
    assert torch.equal(labels, expected_labels)


def test_a_data_module_does_not_warn_by_default() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ready()


# -- batches


def test_a_last_batch_that_is_not_full_is_kept() -> None:
    sizes = [len(labels) for _, labels in ready(val_size=4900, batch_size=64).train_dataloader()]
    assert sizes == [64, 36]


def test_training_images_are_shuffled_in_each_epoch_and_validation_images_are_not() -> None:
    data = ready(val_size=4900, batch_size=100)
    train, val = data.train_dataloader(), data.val_dataloader()
    first, second = (next(iter(labels for _, labels in train)).tolist() for _ in range(2))
    assert first == second  # within an epoch the order is fixed
    train.set_epoch(1)
    other = next(iter(train))[1].tolist()
    assert other != first
    assert sorted(other) == sorted(first)
    assert isinstance(val, Loader)
    first, second = ([label for _, labels in val for label in labels.tolist()] for _ in range(2))
    assert first == second == data.images(train=True)[1][data.split["val"]].tolist()


def first_batch(**options: Any) -> torch.Tensor:
    data = Augmented(**{"batch_size": 64, **options})
    data.setup("fit")
    return next(iter(data.train_dataloader()))[0]


@pytest.mark.parametrize("pipeline", ["memory", "torchvision"])
def test_a_batch_depends_on_the_seeds_of_data_and_run_and_on_no_generator(
    pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    first = first_batch(pipeline=pipeline)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(first_batch(pipeline=pipeline), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first_batch(pipeline=pipeline, seed=1), first)
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert not torch.equal(first_batch(pipeline=pipeline), first)


def test_the_number_of_workers_changes_nothing() -> None:
    images = [first_batch(pipeline="torchvision", num_workers=workers) for workers in (0, 1, 2)]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_the_second_epoch_is_equal_with_and_without_workers() -> None:
    epochs = []
    for workers in (0, 2):
        data = Augmented(batch_size=50, val_size=4850, pipeline="torchvision", num_workers=workers)
        data.setup("fit")
        loader = data.train_dataloader()
        next(iter(loader))  # an epoch that is abandoned
        loader.set_epoch(1)
        epochs.append(torch.cat([images for images, _ in loader]))
    assert torch.equal(*epochs)


def test_augmentation_can_be_turned_off() -> None:
    plain = [
        first_batch(augment=False, pipeline=pipeline) for pipeline in ("memory", "torchvision")
    ]
    assert torch.equal(*plain)
    assert not torch.equal(first_batch(), plain[0])
    data = ready(batch_size=64)  # the digits are not augmented and have the same order
    assert torch.equal(next(iter(data.train_dataloader()))[0], plain[0])


def as_one_of(devices: int, rank: int = 0) -> Any:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        world_size=devices, global_rank=rank, overfit_batches=0, strategy=strategy
    )


@pytest.mark.parametrize(("devices", "images"), [(1, 120), (2, 60), (8, 15)])
def test_a_batch_is_divided_among_the_devices(devices: int, images: int) -> None:
    data = ready(batch_size=120)
    data.trainer = as_one_of(devices)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert len(next(iter(loader))[1]) == images


@pytest.mark.parametrize("pipeline", ["memory", "torchvision"])
def test_every_device_augments_an_image_in_the_same_way(pipeline: str) -> None:
    whole = first_batch(pipeline=pipeline)
    for rank in range(2):
        data = Augmented(batch_size=64, pipeline=pipeline)
        data.trainer = as_one_of(2, rank)
        data.setup("fit")
        assert torch.equal(next(iter(data.train_dataloader()))[0], whole[rank::2])


def test_a_batch_size_that_is_not_a_multiple_of_the_devices_is_refused() -> None:
    data = ready(batch_size=128)
    data.trainer = as_one_of(3)
    with pytest.raises(
        ValueError, match="batch_size: 128 images cannot be shared evenly by 3 devices"
    ):
        data.train_dataloader()


# -- pruning batches


def test_pruning_batches_have_equally_many_images_of_each_class() -> None:
    batches = ready().pruning_batches(images_per_class=20)
    assert [len(labels) for _, labels in batches] == [128, 72]
    assert torch.cat([labels for _, labels in batches]).bincount().tolist() == [20] * 10
    for images, labels in batches:
        assert images.shape == (len(labels), *Digits.input_shape)
        counts = labels.bincount(minlength=10)
        assert counts.max() - counts.min() <= 1


def test_pruning_batches_are_training_images_without_augmentation_and_without_repetition() -> None:
    data = Augmented(val_size=4000)
    found = torch.cat([images for images, _ in data.pruning_batches(images_per_class=30)])
    pixels, _ = data.images(train=True)
    own = pixels[data.split["train"]].float().div(255).sub(0.1307).div(0.3081)
    distances = torch.cdist(
        found.flatten(1), own.flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    )
    matches = (distances < 1e-3).nonzero()
    assert matches[:, 0].unique().numel() == 300
    assert found.flatten(1).unique(dim=0).shape[0] == 300
    again = torch.cat(
        [images for images, _ in data.pruning_batches(images_per_class=30, augment=True)]
    )
    assert not torch.equal(again, found)


@pytest.mark.parametrize("pipeline", ["memory", "torchvision"])
@pytest.mark.parametrize("augment", [False, True])
def test_every_rank_gets_the_same_pruning_batches(pipeline: str, augment: bool) -> None:
    found = []
    for rank in range(2):
        torch.manual_seed(rank)
        data = Augmented(pipeline=pipeline)
        data.trainer = as_one_of(2, rank)
        found.append(data.pruning_batches(augment=augment))
    assert all(
        torch.equal(x, y) and torch.equal(a, b) for (x, a), (y, b) in zip(*found, strict=True)
    )
    other = Augmented(pipeline=pipeline, seed=1).pruning_batches(augment=augment)
    assert not torch.equal(other[0][0], found[0][0][0])


@pytest.mark.parametrize("pipeline", ["memory", "torchvision"])
def test_each_draw_of_pruning_batches_is_another_sample_fixed_by_seed_and_number(
    pipeline: str,
) -> None:
    data, again = Augmented(pipeline=pipeline), Augmented(pipeline=pipeline)
    drawn = [
        torch.cat([images for images, _ in data.pruning_batches(draw=number)])
        for number in range(3)
    ]
    assert torch.equal(drawn[0], torch.cat([images for images, _ in data.pruning_batches()]))
    for number in (2, 0, 1):  # in any order, from any instance
        batches = again.pruning_batches(draw=number)
        assert torch.equal(torch.cat([images for images, _ in batches]), drawn[number])
        assert torch.cat([labels for _, labels in batches]).bincount().tolist() == [10] * 10
    for first, second in ((0, 1), (0, 2), (1, 2)):
        distances = torch.cdist(
            drawn[first].flatten(1),
            drawn[second].flatten(1),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        assert int((distances < 1e-3).sum()) < 20  # of 100 images of 4,500, about 2 by chance
    other = Augmented(pipeline=pipeline, seed=1).pruning_batches(draw=1)
    assert not torch.equal(other[0][0], data.pruning_batches(draw=1)[0][0])
    with pytest.raises(ValueError, match="draw: -1 must be at least 0"):
        data.pruning_batches(draw=-1)


def test_every_rank_gets_the_same_fresh_pruning_batches() -> None:
    found = []
    for rank in range(2):
        torch.manual_seed(rank)
        data = Augmented()
        data.trainer = as_one_of(2, rank)
        found.append(data.pruning_batches(augment=True, draw=3))
    assert all(
        torch.equal(x, y) and torch.equal(a, b) for (x, a), (y, b) in zip(*found, strict=True)
    )


def test_more_pruning_images_than_a_class_has_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"images_per_class: class \d has \d+ training images, not 600; ask for fewer",
    ):
        ready().pruning_batches(images_per_class=600)
    with pytest.raises(ValueError, match="images_per_class: 0 must be at least 1"):
        ready().pruning_batches(images_per_class=0)


class Rare(Digits):
    """Digits with few images of two classes."""

    few: ClassVar[dict[int, int]] = {2: 4, 7: 6}

    def images(self, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = super().images(train)
        chosen = torch.cat(
            [(labels == label).nonzero()[: self.few.get(label, 50), 0] for label in range(10)]
        )
        return images[chosen], labels[chosen]


class Absent(Rare):
    few: ClassVar[dict[int, int]] = {3: 0}


def labels_of(data: Digits) -> list[int]:
    return (
        torch.cat([labels for _, labels in data.pruning_batches()]).bincount(minlength=10).tolist()
    )


@pytest.mark.parametrize("pipeline", ["memory", "torchvision"])
def test_pruning_batches_have_all_images_of_a_small_class_and_warn(pipeline: Any) -> None:
    data = Rare(val_size=0, pipeline=pipeline)
    with pytest.warns(
        UserWarning,
        match=r"class 2 has 4 training images, not 10 \(and 1 more classes .*;"
        r" --data\.images_per_class 4 takes equally many",
    ):
        batches = data.pruning_batches()
    labels = torch.cat([labels for _, labels in batches])
    assert labels.bincount().tolist() == [10, 10, 4, 10, 10, 10, 10, 6, 10, 10]
    assert labels[:10].tolist() == list(range(10))  # classes alternate
    assert labels[-8:].tolist() == [0, 1, 3, 4, 5, 6, 8, 9]


def test_pruning_batches_leave_out_a_class_without_images_and_warn() -> None:
    with pytest.warns(
        UserWarning,
        match=r"class 3 has 0 training images, not 10, so pruning scores on all that there are$",
    ):
        assert labels_of(Absent(val_size=0)) == [10, 10, 10, 0, 10, 10, 10, 10, 10, 10]


def test_the_number_of_pruning_images_is_an_option() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert labels_of(Rare(val_size=0, images_per_class=4)) == [4] * 10
        assert labels_of(Digits(images_per_class=17)) == [17] * 10
        assert labels_of(Digits()) == [10] * 10


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            Rare,
            r"class 2 has 4 training images, not 5; ask for fewer \(all classes have 4\), or leave"
            r" --data\.images_per_class out",
        ),
        (Absent, r"class 3 has 0 training images, not 5; leave --data\.images_per_class out"),
    ],
)
def test_a_number_of_pruning_images_that_a_class_does_not_have_is_refused(
    kind: type[Digits], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(val_size=0, images_per_class=5).pruning_batches()


# -- the user's own images


def test_images_of_a_folder_are_predicted_in_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name, size, value in (
        ("c.png", (28, 28), 0),
        ("b/a.JPG", (56, 84), 255),
        ("a.png", (40, 30), 255),
    ):
        Image.fromarray(np.full((*size, 3), value, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    data = ready("predict", predict_dir=str(tmp_path))
    ((images, labels),) = data.predict_dataloader()
    assert data.predict_files == [tmp_path / "a.png", tmp_path / "b" / "a.JPG", tmp_path / "c.png"]
    black, white = (0 - 0.1307) / 0.3081, (1 - 0.1307) / 0.3081
    assert images.shape == (3, 1, 28, 28)
    for image, value in zip(images, (white, white, black), strict=True):
        torch.testing.assert_close(image, torch.full_like(image, value), atol=1e-2, rtol=0)
    assert labels.tolist() == [-1, -1, -1]


def test_a_folder_without_images_is_refused(tmp_path: Path, opened: list[str]) -> None:
    for folder, message in (
        (tmp_path, "holds no image"),
        (tmp_path / "none", "there is no folder"),
    ):
        with pytest.raises(FileNotFoundError, match=f"predict_dir: .*{message}"):
            ready("predict", predict_dir=str(folder)).predict_dataloader()
    assert opened == []


# -- options


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("option", "least"),
    [
        ({"batch_size": 0}, 1),
        ({"batch_size": -4}, 1),
        ({"val_size": -1}, 0),
        ({"num_workers": -1}, 0),
        ({"images_per_class": 0}, 1),
    ],
)
def test_an_invalid_number_is_named_in_the_error(
    kind: type, option: dict[str, int], least: int
) -> None:
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"^{name}: {value} must be at least {least}"):
        kind(**option)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_pipeline_is_refused(kind: type) -> None:
    with pytest.raises(ValueError, match="pipeline: 'fast' is not one of memory, torchvision"):
        kind(pipeline="fast")


# -- the folder of the files


def test_an_argument_or_the_environment_sets_the_data_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SYNFLOW_DATA", str(tmp_path / "environment"))
    assert MNIST(data_dir=str(tmp_path / "argument")).data_dir == tmp_path / "argument"
    assert MNIST().data_dir == tmp_path / "environment"


@pytest.mark.parametrize("value", [None, ""])
def test_the_default_data_folder_is_in_the_cache(
    value: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SYNFLOW_DATA", value or "")
    if value is None:
        monkeypatch.delenv("SYNFLOW_DATA")
    assert MNIST().data_dir == tmp_path / ".cache" / "synflow_pl"
    assert MNIST(data_dir="~/mine").data_dir == tmp_path / "mine"
