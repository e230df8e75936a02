"""Every file format, with generated files of four images, and the errors for invalid files."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from synflow_pl.data import CIFAR10, CIFAR100, MNIST, FashionMNIST, ImageDataModule
from synflow_pl.data import cifar10 as cifar10_module
from tests.data.generated import (
    FORMATS,
    TwoClasses,
    TwoLarge,
    cifar,
    imagenet,
    mnist,
    tiny_imagenet,
)

KINDS = list(FORMATS)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("synflow_pl.data.downloads.urlopen", refuse)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def small(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Path, np.ndarray]:
    """Return a class, its folder of four training and two test images, and pixels (N, H, W, C)."""
    # The checksums are those of the real files.
    monkeypatch.setattr(cifar10_module, "check_md5", lambda *_: None)
    return request.param, tmp_path, FORMATS[request.param](request.param, tmp_path, 4)


def labels_of(kind: type[ImageDataModule], train: bool) -> list[int]:
    if kind in (TwoClasses, TwoLarge):
        return [0, 0, 1, 1] if train else [0, 1]
    return [0, 1, 2, 3] if train else [0, 1]


def test_images_and_labels_are_those_in_the_files(
    small: tuple[Any, Path, np.ndarray], offline: None
) -> None:
    kind, folder, pixels = small
    data = kind(
        data_dir=str(folder),
        val_size=0,
        augment=False,
        batch_size=4,
        **({"num_workers": 0} if kind is TwoLarge else {}),
    )
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    loader = data.train_dataloader()
    images, labels = next(iter(loader))
    order = torch.cat([indices for indices, _ in loader.epoch_keys()])
    mean, std = np.array(kind.mean), np.array(kind.std)
    expected = torch.from_numpy((pixels / 255 - mean) / std).permute(0, 3, 1, 2).float()
    if kind is TwoLarge:  # a test image is resized to 256 and cut to 224, which is not the identity
        assert images.shape == expected.shape
    else:
        torch.testing.assert_close(images, expected[order], atol=1e-5, rtol=0)
    assert labels.tolist() == [labels_of(kind, True)[image] for image in order]
    ((tested, tested_labels),) = data.test_dataloader()
    assert tested_labels.tolist() == labels_of(kind, False)
    if kind is not TwoLarge:
        torch.testing.assert_close(tested, expected[:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind is not TwoLarge], ids=lambda kind: kind.__name__
)
def test_both_pipelines_give_equal_floats_without_augmentation(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10_module, "check_md5", lambda *_: None)
    FORMATS[kind](kind, tmp_path, 20)
    batches = []
    for pipeline in ("memory", "torchvision"):
        data = kind(
            data_dir=str(tmp_path), val_size=4, augment=False, batch_size=8, pipeline=pipeline
        )
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
        batches.append(
            [
                batch
                for loader in (
                    data.train_dataloader(),
                    data.val_dataloader(),
                    data.test_dataloader(),
                )
                for batch in loader
            ]
        )
    assert len(batches[0]) == len(batches[1]) == 2 + 1 + 2
    for (images, labels), (others, other_labels) in zip(*batches, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_data_sets_in_one_folder_do_not_interfere(tmp_path: Path) -> None:
    pixels = {
        kind: mnist(kind, tmp_path, count) for kind, count in ((MNIST, 10), (FashionMNIST, 30))
    }
    for kind in (MNIST, FashionMNIST):
        assert len(kind(data_dir=str(tmp_path)).images(train=True)[0]) == len(pixels[kind])


def test_a_grey_photograph_is_converted_to_rgb(tmp_path: Path) -> None:
    tiny_imagenet(TwoClasses, tmp_path, 4)
    path = tmp_path / "tiny-imagenet-200" / "train" / "n01" / "images" / "n01_0.JPEG"
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(path, format="JPEG", quality=100)
    images, _ = TwoClasses(data_dir=str(tmp_path)).images(train=True)
    assert (images[0] == 77).all()


def test_imagenet_crops_the_centre_and_a_random_place_for_training(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            # 512x256, white but for a black centre of 224x224: the shorter side is 256 already.
            pixels = np.full((256, 512), 255, np.uint8)
            pixels[16:240, 144:368] = 0
            Image.fromarray(pixels).save(tmp_path / part / name / "1.png")
    data = TwoLarge(data_dir=str(tmp_path), val_size=0, num_workers=0, batch_size=2)
    data.setup("fit")
    data.setup("test")
    ((images, _),) = data.test_dataloader()
    assert images.shape == (2, 3, 224, 224)
    black = -torch.tensor(data.mean) / torch.tensor(data.std)
    torch.testing.assert_close(images, black.view(3, 1, 1).expand_as(images))
    ((first, _),), ((second, _),) = data.train_dataloader(), data.train_dataloader()
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


# -- missing and invalid files


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_error_for_missing_files_names_one_of_them(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=rf"there is no (file|folder) '{tmp_path}.*(download|point)"
    ):
        kind(data_dir=str(tmp_path)).setup("fit")


def test_the_error_for_a_truncated_idx_file_has_both_sizes(tmp_path: Path) -> None:
    mnist(MNIST, tmp_path, 4)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-10])
    # 16 bytes of header and 4 * 784 bytes of pixels.
    with pytest.raises(
        ValueError,
        match=r"-ubyte' has 3,142 bytes, and an array of shape \(4, 28, 28\) has 3,152; delete it",
    ):
        MNIST(data_dir=str(tmp_path)).setup("fit")


@pytest.mark.parametrize("content", [b"", b"\0\0", bytes(100)])
def test_a_file_that_is_not_an_idx_file_is_refused(content: bytes, tmp_path: Path) -> None:
    mnist(MNIST, tmp_path, 4)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match="is not an IDX file of bytes along 3 axes; delete it"):
        MNIST(data_dir=str(tmp_path)).setup("fit")


def test_different_numbers_of_images_and_labels_are_refused(tmp_path: Path) -> None:
    mnist(MNIST, tmp_path, 4)
    raw = tmp_path / "MNIST" / "raw"
    shutil.copy(raw / "t10k-labels-idx1-ubyte", raw / "train-labels-idx1-ubyte")
    with pytest.raises(ValueError, match="hold 4 images and 2 labels"):
        MNIST(data_dir=str(tmp_path)).setup("fit")


@pytest.mark.parametrize("keep", [0, 1, 50, 1000, -1])
def test_a_truncated_batch_file_is_refused(keep: int, tmp_path: Path) -> None:
    cifar(CIFAR10, tmp_path, 10)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        ValueError,
        match=r"data_batch_3' is truncated or not a CIFAR file \(.*\); delete its folder",
    ):
        CIFAR10(data_dir=str(tmp_path)).setup("fit")


def test_a_large_truncated_batch_file_is_refused(tmp_path: Path) -> None:
    cifar(CIFAR100, tmp_path, 1000)  # 3 MB: its pixels are not read with the rest
    path = tmp_path / "cifar-100-python" / "train"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="train' is truncated or not a CIFAR file"):
        CIFAR100(data_dir=str(tmp_path)).setup("fit")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("count", [10, 1000])
def test_a_batch_file_is_read_in_every_pickle_protocol(
    protocol: int, count: int, tmp_path: Path
) -> None:
    pixels = cifar(CIFAR100, tmp_path, count)
    path = tmp_path / "cifar-100-python" / "train"
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()), protocol=protocol))
    images, labels = CIFAR100(data_dir=str(tmp_path)).images(train=True)
    assert np.array_equal(images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert labels.tolist() == [image % 10 for image in range(count)]


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("run!",)


def test_code_in_a_pickle_is_not_executed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cifar(CIFAR10, tmp_path, 10)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(
        pickle.dumps({b"data": Harmful()})
    )
    with pytest.raises(ValueError, match=r"data_batch_2' .*it asks for builtins.print"):
        CIFAR10(data_dir=str(tmp_path)).setup("fit")
    assert capsys.readouterr().out == ""


def test_a_label_that_is_not_a_class_is_refused(tmp_path: Path) -> None:
    cifar(CIFAR10, tmp_path, 10)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), b"labels": [0, 11]}))
    with pytest.raises(ValueError, match="data_batch_1' holds the label 11, expected 0 to 9"):
        CIFAR10(data_dir=str(tmp_path)).setup("fit")


def test_a_file_with_another_md5_is_refused(tmp_path: Path) -> None:
    cifar(CIFAR10, tmp_path, 10)
    expected = (
        "data_batch_1' is not the file that was published: its md5 is [0-9a-f]{32}, expected"
        " c99cafc152244af753f735de768cd75f"
    )
    with pytest.raises(ValueError, match=expected):
        CIFAR10(data_dir=str(tmp_path)).prepare_data()


def test_a_missing_class_folder_is_named_in_the_error(tmp_path: Path) -> None:
    tiny_imagenet(TwoClasses, tmp_path, 4)
    shutil.rmtree(tmp_path / "tiny-imagenet-200" / "train" / "n02")
    with pytest.raises(
        FileNotFoundError, match=r"the class folder '.*train/n02/images' is missing or empty"
    ):
        TwoClasses(data_dir=str(tmp_path)).prepare_data()


def test_a_class_folder_in_only_one_part_of_imagenet_is_named_in_the_error(tmp_path: Path) -> None:
    imagenet(TwoLarge, tmp_path, 4)
    shutil.rmtree(tmp_path / "val" / "n02")
    with pytest.raises(
        ValueError, match=r"the class folder 'n02' is in '.*train' but not in '.*val'"
    ):
        TwoLarge(data_dir=str(tmp_path)).prepare_data()
    shutil.rmtree(tmp_path / "train" / "n02")
    with pytest.raises(ValueError, match=r"train' has 1 class folders, expected 2"):
        TwoLarge(data_dir=str(tmp_path)).prepare_data()


def test_the_error_for_an_unknown_class_names_its_line(tmp_path: Path) -> None:
    tiny_imagenet(TwoClasses, tmp_path, 4)
    path = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    path.write_text(path.read_text().replace("n02", "n99"))
    with pytest.raises(
        ValueError,
        match=r"val_annotations.txt' line 2: 'n99' is not one of the 2 classes in wnids.txt",
    ):
        TwoClasses(data_dir=str(tmp_path)).prepare_data()


def test_a_labels_file_that_does_not_match_the_images_is_refused(tmp_path: Path) -> None:
    tiny_imagenet(TwoClasses, tmp_path, 4)
    (tmp_path / "tiny-imagenet-200" / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(
        ValueError, match=r"do not name the same files: 'val_1.JPEG' is in one only"
    ):
        TwoClasses(data_dir=str(tmp_path)).prepare_data()


@pytest.mark.parametrize("pipeline", ["memory", "torchvision"])
def test_a_damaged_image_is_named_in_the_error(pipeline: Any, tmp_path: Path) -> None:
    tiny_imagenet(TwoClasses, tmp_path, 4)
    path = tmp_path / "tiny-imagenet-200" / "train" / "n01" / "images" / "n01_1.JPEG"
    path.write_bytes(path.read_bytes()[:100])
    data = TwoClasses(data_dir=str(tmp_path), pipeline=pipeline, val_size=0)
    with pytest.raises(ValueError, match=r"n01_1.JPEG' cannot be read as an image"):
        data.setup("fit") or list(data.train_dataloader())  # type: ignore[func-returns-value]


def test_imagenet_refuses_the_pipeline_memory() -> None:
    with pytest.raises(ValueError, match="pipeline: ImageNet does not fit in memory"):
        TwoLarge(pipeline="memory")
