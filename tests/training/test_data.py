"""The data modules resume in the middle of an epoch and are shared by two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from synflow_pl import Classifier
from synflow_pl.data import Digits


class Few(Digits):
    """Digits with 53 augmented training images: 13 batches of four and one of a single image."""

    crop_padding = 2

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"batch_size": 4, "val_size": 5000 - 53, **options})


class Seen(Callback):
    """Record the sum of the images and the labels of each training step."""

    def __init__(self) -> None:
        self.batches: list[tuple[float, list[int]]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append((batch[0].double().sum().item(), batch[1].tolist()))


def fit(
    folder: Path, data: Digits, *callbacks: Callback, ckpt_path: Path | None = None, **options: Any
) -> tuple[Seen, Classifier]:
    seed_everything(3)
    seen, module = (
        Seen(),
        Classifier(
            nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.01),
        ),
    )
    settings: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "limit_val_batches": 1,
        "default_root_dir": folder,
        **options,
    }
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    run = Trainer(callbacks=[seen, *callbacks], **settings, **quiet)  # type: ignore[arg-type]
    run.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return seen, module


def same_weights(left: nn.Module, right: nn.Module) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    )


PIPELINES: list[dict[str, Any]] = [
    {},
    {"pipeline": "torchvision"},
    {"pipeline": "torchvision", "num_workers": 2},
]
TRAINERS: list[dict[str, Any]] = [{}, {"limit_train_batches": 5}, {"val_check_interval": 4}]


@pytest.mark.parametrize("data", PIPELINES, ids=["memory", "torchvision", "workers"])
@pytest.mark.parametrize("options", TRAINERS, ids=["", "limited", "checked"])
def test_a_run_resumed_at_any_step_trains_on_the_same_images(
    data: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    whole, expected = fit(
        tmp_path,
        Few(**data),
        ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1),
        **options,
    )
    epoch = len(whole.batches) // 2
    assert epoch == options.get("limit_train_batches", 14)
    assert whole.batches[:epoch] != whole.batches[epoch:]
    stops = (
        {1, epoch // 2, epoch - 1, epoch, epoch + 1, epoch + epoch // 2}
        if not data.get("num_workers")
        else {2, epoch + 3}
    )
    for stop in sorted(stops):
        seen, module = fit(
            tmp_path, Few(**data), ckpt_path=tmp_path / f"step={stop}.ckpt", **options
        )
        assert seen.batches == whole.batches[stop:], stop
        assert same_weights(module, expected), stop


def test_a_run_resumes_from_the_end_of_an_epoch_with_another_batch_size(tmp_path: Path) -> None:
    fit(
        tmp_path,
        Few(),
        ModelCheckpoint(tmp_path, "end", save_on_train_epoch_end=True),
        max_epochs=1,
    )
    seen, _ = fit(tmp_path, Few(batch_size=10), ckpt_path=tmp_path / "end.ckpt")
    assert [len(labels) for _, labels in seen.batches] == [10, 10, 10, 10, 10, 3]


def test_a_run_does_not_resume_within_an_epoch_with_another_batch_size(
    tmp_path: Path,
) -> None:
    fit(
        tmp_path,
        Few(),
        ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1),
        max_epochs=1,
    )
    with pytest.raises(
        ValueError,
        match=r"stopped after batch 3 of an epoch with images 53, batch_size 4"
        r".*this run has .*batch_size 10",
    ):
        fit(tmp_path, Few(batch_size=10), ckpt_path=tmp_path / "step=3.ckpt")


def test_a_checkpoint_with_a_loader_is_read_with_weights_only(tmp_path: Path) -> None:
    fit(
        tmp_path,
        Few(),
        ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1),
        max_epochs=1,
    )
    state = torch.load(tmp_path / "step=3.ckpt", weights_only=True)["loops"]["fit_loop"][
        "state_dict"
    ]["combined_loader"]
    assert state == [{"epoch": 0, "batch": 3, "images": 53, "batch_size": 4, "seed": 3}]


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_images_have_the_precision_of_the_network(precision: Any, tmp_path: Path) -> None:
    seen, module = fit(tmp_path, Few(), max_epochs=1, precision=precision)
    assert len(seen.batches) == 14
    assert next(module.parameters()).dtype == (
        torch.float64 if precision == "64-true" else torch.bfloat16
    )


# -- two processes


class Written(Callback):
    """Write a file of the training and validation images of each rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _write(self, trainer: Trainer, name: str, batch: tuple[Tensor, Tensor]) -> None:
        with (self.folder / f"{name}-{trainer.current_epoch}-{trainer.global_rank}").open(
            "a"
        ) as file:
            file.write(" ".join(f"{image.double().sum().item():.6f}" for image in batch[0]) + "\n")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._write(trainer, "train", batch)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        *_: Any,
        **__: Any,
    ) -> None:
        self._write(trainer, "val", batch)


def read(folder: Path, name: str, epoch: int, rank: int) -> list[list[str]]:
    return [line.split() for line in (folder / f"{name}-{epoch}-{rank}").read_text().splitlines()]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("pipeline", ["memory", "torchvision"])
def test_two_processes_share_each_epoch_and_train_like_one(pipeline: Any, tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    modules = []
    for folder, options in ((two, {"devices": 2, "strategy": "ddp_fork"}), (one, {"devices": 1})):
        folder.mkdir()
        # The last of 59 images' batches has three, two for one rank and one for the other.
        data = Few(pipeline=pipeline, val_size=5000 - 59)
        _, module = fit(
            folder,
            data,
            Written(folder),
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            limit_val_batches=3,
            **options,
        )
        modules.append(module)
    epochs = []
    for epoch in range(2):
        shares, whole = (
            [read(two, "train", epoch, rank) for rank in range(2)],
            read(one, "train", epoch, 0),
        )
        assert [len(share) for share in shares] == [len(whole)] * 2 == [15] * 2
        assert [[len(batch) for batch in share] for share in shares] == [[2] * 15, [2] * 14 + [1]]
        for left, right, both in zip(*shares, whole, strict=True):
            assert sorted(left + right) == sorted(both)
        epochs.append(whole)
    assert epochs[0] != epochs[1]
    evaluated = [
        image for rank in range(2) for batch in read(two, "val", 0, rank) for image in batch
    ]
    assert sorted(evaluated) == sorted(image for batch in read(one, "val", 0, 0) for image in batch)
    # Each rank's loss is weighted by its number of images, so the step is that of one process.
    for left, right in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)
