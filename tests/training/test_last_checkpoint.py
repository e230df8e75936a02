"""Training that resumes from any checkpoint ends with the weights of an uninterrupted run."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import EMAWeightAveraging, RichProgressBar, TQDMProgressBar
from pytorch_lightning.cli import ReduceLROnPlateau
from test_data import Few, same_weights
from torch import Tensor, nn
from torchmetrics import MeanMetric

from synflow_pl import Classifier, PruneAtInit
from synflow_pl.pruners import GradualMagnitude, Random
from synflow_pl.training import DurableCheckpointIO, LastCheckpoint, Reseed
from synflow_pl.training.checkpoints import KEY, read
from synflow_pl.training.signals import Stopped


class Copies(DurableCheckpointIO):
    """Keep a copy of every checkpoint, before the next one replaces it."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        super().save_checkpoint(checkpoint, path)
        folder = Path(path).parent
        shutil.copy(
            path, folder / f"{len(list(folder.glob('*.copy')))}-{checkpoint['global_step']}.copy"
        )


def classifier(scheduler: Any = None) -> Classifier:
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Dropout(), nn.Linear(10, 10))
    return Classifier(
        network, optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), scheduler=scheduler
    )


def fit(
    folder: Path,
    *callbacks: Callback,
    module: Classifier | None = None,
    every: int = 5,
    ckpt_path: Path | None = None,
    **options: Any,
) -> tuple[Trainer, Classifier]:
    seed_everything(3)
    module = module or classifier()
    settings: dict[str, Any] = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "limit_val_batches": 1,
        "default_root_dir": folder,
        **options,
    }
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    keep = LastCheckpoint(every, folder)
    trainer = Trainer(
        callbacks=[Reseed(), *callbacks, keep], plugins=[Copies()], **settings, **quiet
    )
    trainer.fit(module, datamodule=Few(), ckpt_path=ckpt_path)
    return trainer, module


def copies(folder: Path) -> dict[int, Path]:
    """Return the copies of checkpoints, by step."""
    return {
        int(path.stem.partition("-")[2]): path
        for path in sorted(folder.glob("*.copy"), key=lambda path: int(path.stem.split("-")[0]))
    }


CASES: dict[str, tuple[dict[str, Any], list[int]]] = {
    # An epoch has 14 batches. A checkpoint is saved at its end, and every five steps counted from
    # the last checkpoint.
    "plain": ({}, [5, 10, 14, 19, 24, 28, 33, 38, 42]),
    "accumulated": ({"accumulate_grad_batches": 4, "every": 2}, [2, 4, 6, 8, 10, 12]),
    "until a step": (
        {"max_epochs": -1, "max_steps": 35, "every": 5},
        [5, 10, 14, 19, 24, 28, 33, 35],
    ),
    "validated within": ({"val_check_interval": 7, "every": 7}, [7, 14, 21, 28, 35, 42]),
    "validated seldom": ({"check_val_every_n_epoch": 2, "every": 10}, [10, 14, 24, 28, 38, 42]),
    "not validated": ({"limit_val_batches": 0, "every": 100}, [14, 28, 42]),
}


@pytest.mark.parametrize("case", CASES)
def test_training_resumed_from_any_checkpoint_ends_with_the_same_weights(
    case: str, tmp_path: Path
) -> None:
    options, expected = CASES[case]
    pruning = lambda: PruneAtInit(Random(), density=0.25, at_epoch=1)  # noqa: E731
    _, whole = fit(tmp_path / "whole", pruning(), **options)
    kept = copies(tmp_path / "whole")
    assert list(kept) == expected
    for step, path in kept.items():
        trainer, module = fit(tmp_path / str(step), pruning(), ckpt_path=path, **options)
        assert trainer.global_step == expected[-1], step
        assert same_weights(module, whole), step
    assert [path.name for path in (tmp_path / "whole").iterdir() if path.suffix != ".copy"] == [
        "last.ckpt"
    ]


def test_a_plateau_schedule_resumes_from_any_checkpoint(tmp_path: Path) -> None:
    # With this threshold the metric never improves, so the learning rate is halved after each
    # epoch except the first.
    schedule = lambda optimizer: ReduceLROnPlateau(  # noqa: E731
        optimizer, "val/loss", patience=0, factor=0.5, threshold=10, threshold_mode="abs"
    )
    trainer, whole = fit(tmp_path / "whole", module=classifier(schedule), max_epochs=4)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.05 / 2**3
    for step, path in copies(tmp_path / "whole").items():
        trainer, module = fit(
            tmp_path / str(step), module=classifier(schedule), max_epochs=4, ckpt_path=path
        )
        assert same_weights(module, whole), step


def test_gradual_pruning_and_averages_resume_from_any_checkpoint(tmp_path: Path) -> None:
    callbacks = lambda: [  # noqa: E731
        PruneAtInit(GradualMagnitude(end_fraction=0.5), density=0.1, rounds=5),
        EMAWeightAveraging(decay=0.9),
    ]
    _, whole = fit(tmp_path / "whole", *callbacks())
    expected = read(tmp_path / "whole/last.ckpt")[KEY]
    # The last checkpoint is left out, since no step remains after it.
    for step, path in list(copies(tmp_path / "whole").items())[:-1]:
        _, module = fit(tmp_path / str(step), *callbacks(), ckpt_path=path)
        assert same_weights(module, whole), step
        masks = read(tmp_path / str(step) / "last.ckpt")[KEY]["masks"]["masks"]
        assert all(
            torch.equal(mask, expected["masks"]["masks"][name]) for name, mask in masks.items()
        )


# -- signals


class Signal(Callback):
    """Send this process one signal during a batch, a validation or the pruning."""

    def __init__(self, when: str, number: signal.Signals) -> None:
        self.when, self.number = when, number

    def send(self, when: str, trainer: Trainer) -> None:
        if when == self.when and not trainer.sanity_checking:
            self.when = ""
            os.kill(os.getpid(), self.number)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.send("pruning", trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.send(f"step {trainer.global_step}", trainer)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.send("validation", trainer)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("when", "step"), [("step 4", 5), ("step 13", 14), ("validation", 14)])
def test_a_signal_stops_training_after_the_current_batch_or_validation(
    when: str, step: int, number: signal.Signals, tmp_path: Path
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped) as stopped:
        fit(tmp_path, Signal(when, number), every=100)
    assert (stopped.value.number, stopped.value.checkpoint) == (number, str(tmp_path / "last.ckpt"))
    assert read(tmp_path / "last.ckpt")["global_step"] == step
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_stops_training_after_gradient_accumulation(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fit(tmp_path, Signal("step 1", signal.SIGINT), accumulate_grad_batches=4, every=100)
    saved = read(tmp_path / "last.ckpt")
    assert saved["global_step"] == 2
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 8


def test_a_signal_during_pruning_ends_the_process_at_once(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        fit(tmp_path, Signal("pruning", signal.SIGINT))
    assert isinstance(left.value.__context__, KeyboardInterrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_interval_between_checkpoints_must_be_at_least_one_step() -> None:
    with pytest.raises(
        ValueError, match="checkpoint_every_n_steps: 0 optimiser steps must be at least 1"
    ):
        LastCheckpoint(0)


# -- two ranks


class Own(LightningModule):
    """Log metrics with every kind of reduction, and call ``all_gather`` in hooks.

    Each logged value is the rank plus a constant.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        self.mean = MeanMetric()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        self.mean.update(float(self.global_rank))
        self.log("mean", self.mean, on_step=True, on_epoch=True, prog_bar=True)
        self.log(
            "rank",
            float(self.global_rank),
            on_step=True,
            on_epoch=True,
            prog_bar=True,
            sync_dist=True,
            reduce_fx="sum",
        )
        # This metric follows those of the first epoch's end in Lightning's table of results.
        if self.current_epoch:
            self.log("later", 10.0 + self.global_rank, on_epoch=True, prog_bar=True, sync_dist=True)
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self.log("val", 20.0 + self.global_rank, prog_bar=True, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        self.all_gather(torch.ones(2))
        self.log("val_end", 30.0 + self.global_rank, prog_bar=True, sync_dist=True)

    def on_train_epoch_end(self) -> None:
        self.all_gather(torch.ones(3))
        self.log("end", 40.0 + self.global_rank, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Early(Callback):
    """Log a metric at the end of an epoch, before the progress bar reads metrics."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("early", 50.0 + trainer.global_rank, prog_bar=True, sync_dist=True)


class ReadByOneRank(Callback):
    """Read metrics in every hook on a single rank, and write those of the last epoch to files."""

    def __init__(self, rank: int, folder: Path) -> None:
        self.rank, self.folder = rank, folder

    def read(self, trainer: Trainer, *_: Any) -> dict[str, float]:
        if trainer.global_rank != self.rank:
            return {}
        return {
            key: float(value)
            for key, value in {**trainer.callback_metrics, **trainer.progress_bar_metrics}.items()
        }

    on_train_start = on_train_end = on_train_epoch_start = read  # type: ignore[assignment]
    on_validation_start = on_validation_end = on_validation_epoch_end = read  # type: ignore[assignment]
    on_train_batch_start = on_train_batch_end = on_validation_batch_end = read  # type: ignore[assignment]
    on_sanity_check_end = on_fit_end = read  # type: ignore[assignment]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.read(trainer)
        if trainer.global_rank == self.rank and trainer.current_epoch == 2:
            torch.save(self.read(trainer), self.folder / "read")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.global_rank == self.rank:
            torch.save(self.read(trainer), self.folder / "saved")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("rank", "bar", "options"),
    [
        (0, RichProgressBar, {}),
        (0, TQDMProgressBar, {"limit_val_batches": 0}),
        (1, TQDMProgressBar, {"val_check_interval": 2}),
    ],
    ids=["rich", "tqdm, not validated", "validated within"],
)
def test_a_single_rank_may_read_any_metric_in_any_hook(
    rank: int, bar: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    callbacks = [
        Early(),
        ReadByOneRank(rank, tmp_path),
        bar(),
        PruneAtInit(Random(), density=0.5),
        LastCheckpoint(3, tmp_path),
    ]
    settings: dict[str, Any] = {
        "max_epochs": 3,
        "limit_train_batches": 4,
        "limit_val_batches": 2,
        **options,
    }
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
    trainer = Trainer(callbacks=callbacks, devices=2, strategy="ddp_fork", **settings, **quiet)
    trainer.fit(Own(), datamodule=Few())
    read, saved = torch.load(tmp_path / "read"), torch.load(tmp_path / "saved")
    means = {"mean_epoch": 0.5, "rank_epoch": 4.0, "later_epoch": 10.5, "early": 50.5, "end": 40.5}
    if settings["limit_val_batches"]:
        means |= {"val": 20.5, "val_end": 30.5}
    assert {key: saved[key] for key in means} == means
    assert {key: read[key] for key in means if key != "end"} == {
        key: mean for key, mean in means.items() if key != "end"
    }
