"""Invalid images and labels of a user's data set are refused in one sentence before pruning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor
from torch.utils.data import Dataset

from synflow_pl.data import ImageDataModule
from synflow_pl.networks import FC
from synflow_pl.pruners import SynFlow
from synflow_pl.training import Classifier, PruneAtInit

COUNT = 40
PIXELS = torch.randint(
    256, (COUNT, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)
LABELS = torch.arange(COUNT) % 3


class Own(ImageDataModule):
    input_shape = (1, 6, 6)
    num_classes = 3
    mean = (0.5,)
    std = (0.25,)
    returned: Any = (PIXELS, LABELS)

    def images(self, train: bool) -> tuple[Tensor, Tensor]:
        return self.returned  # type: ignore[no-any-return]


def own(returned: Any, **options: Any) -> Own:
    data = Own(**options)
    data.returned = returned
    return data


def with_label(index: int, label: int) -> Tensor:
    labels = LABELS.clone()
    labels[index] = label
    return labels


WRONG: dict[str, tuple[Any, str]] = {
    "floats": (
        (PIXELS / 255, LABELS),
        r"images of torch\.float32, expected torch\.uint8 from 0 to 255",
    ),
    "doubles": ((PIXELS.double(), LABELS), r"images of torch\.float64, expected torch\.uint8"),
    "long images": ((PIXELS.long(), LABELS), r"images of torch\.int64, expected torch\.uint8"),
    "bool images": ((PIXELS > 9, LABELS), r"images of torch\.bool, expected torch\.uint8"),
    "label too large": (
        (PIXELS, with_label(7, 3)),
        r"label 3 for image 7, expected 0 to 2 as num_classes 3 says",
    ),
    "label negative": ((PIXELS, with_label(7, -1)), r"label -1 for image 7, expected 0 to 2"),
    "labels from 1": ((PIXELS, LABELS + 1), r"label 3 for image 2 and 12 more, expected 0 to 2"),
    "byte labels too large": (
        (PIXELS, with_label(7, 255).to(torch.uint8)),
        "label 255 for image 7, expected 0 to 2",
    ),
    "float labels": (
        (PIXELS, LABELS.float()),
        r"labels of torch\.float32, expected torch\.int64 from 0 to 2",
    ),
    "bool labels": ((PIXELS, LABELS > 1), r"labels of torch\.bool, expected torch\.int64"),
    "one-hot labels": (
        (PIXELS, torch.eye(3)[LABELS].long()),
        r"labels of shape \(40, 3\), expected the shape \(40,\)",
    ),
    "column of labels": (
        (PIXELS, LABELS[:, None]),
        r"labels of shape \(40, 1\), expected the shape \(40,\)",
    ),
    "fewer labels": ((PIXELS, LABELS[:-1]), r"40 images and labels of shape \(39,\)"),
    "more labels": ((PIXELS[:-1], LABELS), r"39 images and labels of shape \(40,\)"),
    "no channels": (
        (PIXELS[:, 0], LABELS),
        r"images of shape \(40, 6, 6\), expected \(N, 1, 6, 6\) as input_shape says",
    ),
    "channels last": (
        (PIXELS.permute(0, 2, 3, 1), LABELS),
        r"images of shape \(40, 6, 6, 1\), expected \(N, 1, 6, 6\)",
    ),
    "other size": ((PIXELS[..., 1:], LABELS), r"images of shape \(40, 1, 6, 5\), expected"),
    "colours": (
        (PIXELS.expand(-1, 3, -1, -1), LABELS),
        r"images of shape \(40, 3, 6, 6\), expected",
    ),
    "empty": ((PIXELS[:0], LABELS[:0]), "has no images, expected at least 1"),
    "arrays": (
        (PIXELS.numpy(), LABELS.numpy()),
        "returned ndarray, ndarray, expected a tuple of two tensors",
    ),
    "images alone": (PIXELS, "returned Tensor, expected a tuple of two tensors"),
    "three": (
        (PIXELS, LABELS, LABELS),
        "returned Tensor, Tensor, Tensor, expected a tuple of two tensors",
    ),
    "nothing": (None, "returned NoneType, expected a tuple of two tensors"),
}


@pytest.mark.parametrize("pipeline", ["memory", "torchvision"])
@pytest.mark.parametrize("stage", ["fit", "test"])
@pytest.mark.parametrize("case", WRONG)
def test_invalid_images_and_labels_are_refused_in_one_sentence(
    case: str, stage: str, pipeline: Any
) -> None:
    returned, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as refused:
        own(returned, pipeline=pipeline).setup(stage)
    assert str(refused.value).startswith(f"Own.images(train={stage == 'fit'}) ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("case", ["floats", "labels from 1", "fewer labels"])
def test_a_data_set_that_is_refused_is_not_used_for_pruning(case: str, tmp_path: Any) -> None:
    network = FC(input_shape=(1, 6, 6), num_classes=3, width=4)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[PruneAtInit(SynFlow(), density=0.5)],
        **quiet,
    )  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=WRONG[case][1]):
        trainer.fit(Classifier(network, num_classes=3), datamodule=own(WRONG[case][0]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("pipeline", ["memory", "torchvision"])
def test_labels_of_every_integer_type_are_converted_to_int64(
    dtype: torch.dtype, pipeline: Any
) -> None:
    data = own((PIXELS, LABELS.to(dtype)), pipeline=pipeline, val_size=0, batch_size=COUNT)
    data.setup("fit")
    ((_, labels),) = data.train_dataloader()
    assert labels.dtype == torch.int64
    assert labels.bincount().tolist() == [14, 13, 13]


# -- an overridden dataset()


class Listed(Dataset[Any]):
    def __init__(self, image: Any, labels: Any, label: int = 0) -> None:
        self.image, self.labels, self.label = image, labels, label

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        return self.image if self.label is None else (self.image, self.label)


class Streamed(Own):
    listed: Any

    def dataset(self, train: bool, transform: Any) -> Dataset[tuple[Any, int]]:
        return self.listed  # type: ignore[no-any-return]


IMAGE = torch.zeros(1, 6, 6)
BAD: dict[str, tuple[Listed, str]] = {
    "no labels": (Listed(IMAGE, None), "has no labels, expected an attribute labels"),
    "label too large": (Listed(IMAGE, with_label(7, 3)), "label 3 for image 7, expected 0 to 2"),
    "float labels": (Listed(IMAGE, LABELS.float()), r"labels of torch\.float32"),
    "fewer labels": (Listed(IMAGE, LABELS[1:]), r"40 images and labels of shape \(39,\)"),
    "words": (Listed(IMAGE, ["cat"] * COUNT), "labels of type list, expected a tensor of int64"),
    "bytes": (
        Listed(PIXELS[0], LABELS),
        r"image of torch\.uint8 in the shape \(1, 6, 6\), expected floating point",
    ),
    "other size": (
        Listed(torch.zeros(1, 5, 6), LABELS),
        r"image of torch\.float32 in the shape \(1, 5, 6\)",
    ),
    "another label": (
        Listed(IMAGE, LABELS, label=2),
        "has the label 2, expected 0 as its labels say",
    ),
    "no pair": (
        Listed(IMAGE, LABELS, label=None),
        "is a Tensor, expected a tuple of a transformed image",
    ),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_overridden_dataset_is_refused_in_one_sentence(case: str) -> None:
    data = Streamed(pipeline="torchvision")
    data.listed, message = BAD[case]
    with pytest.raises(ValueError, match=message) as refused:
        data.setup("fit")
    assert str(refused.value).startswith("Streamed.dataset(train=True)")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "labels", [LABELS, LABELS.tolist(), LABELS.numpy(), LABELS.numpy().astype(np.int32)]
)
def test_an_overridden_dataset_may_list_its_labels_in_any_container(labels: Any) -> None:
    data = Streamed(pipeline="torchvision", val_size=0)
    data.listed = Listed(IMAGE, labels)
    data.setup("fit")
    assert (
        torch.cat([labels for _, labels in data.pruning_batches(images_per_class=3)]).tolist()
        == [0] * 9
    )  # the labels that the samples have
