"""Throughput logs the gradient norm of kept weights, and images per second.

The tests replace the clock by one that advances by one second at each reading.
"""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import CSVLogger

from synflow_pl.cli.trainer_setup import add_run_callbacks
from synflow_pl.data import Digits
from synflow_pl.networks import FC
from synflow_pl.pruners import Magnitude
from synflow_pl.training import Classifier, FullyShardStrategy, PruneAtInit, throughput
from synflow_pl.training.throughput import Throughput


class Squares(Callback):
    """Record the gradient norm of each step, over kept weights and biases and over all weights."""

    def __init__(self, pruning: PruneAtInit) -> None:
        self.pruning, self.kept, self.all = pruning, [], []  # type: ignore[var-annotated]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        gradients = {
            name: p.grad.detach().clone() for name, p in pl_module.network.named_parameters()
        }
        self.all.append(sum(float((g**2).sum()) for g in gradients.values()) ** 0.5)
        for name, mask in (self.pruning.masks or {}).items():
            gradients[name] *= mask
        self.kept.append(sum(float((g**2).sum()) for g in gradients.values()) ** 0.5)


def train(folder: Path, **options: Any) -> tuple[list[dict[str, str]], Squares]:
    pruning = PruneAtInit(Magnitude(), density=0.5)
    squares = Squares(pruning)
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version=""),
        # The first callback reads gradients before those of pruned weights are set to zero.
        callbacks=[squares, pruning, Throughput()],
        limit_train_batches=4,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(Classifier(FC()), datamodule=Digits(batch_size=8))
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file)), squares


def logged(rows: list[dict[str, str]], name: str) -> dict[int, float]:
    return {int(row["step"]): float(row[name]) for row in rows if row.get(name)}


def test_the_gradient_norm_of_kept_weights_is_logged_at_logging_steps(tmp_path: Path) -> None:
    rows, squares = train(tmp_path, max_epochs=1, log_every_n_steps=2)
    norms = logged(rows, "train/gradient_norm")
    assert norms == pytest.approx({1: squares.kept[1], 3: squares.kept[3]}, rel=1e-4)
    assert norms[1] < 0.99 * squares.all[1]


def test_the_rate_counts_images_since_the_last_logging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    rows, _ = train(tmp_path, max_epochs=1, log_every_n_steps=2)
    # The clock is read at the start of the first and the end of the second of two steps.
    assert logged(rows, "train/images_per_second") == {1: 16, 3: 16}


def test_accumulated_batches_count_as_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    rows, _ = train(tmp_path, max_epochs=1, log_every_n_steps=1, accumulate_grad_batches=2)
    assert logged(rows, "train/images_per_second") == {0: 16, 1: 16}


def test_the_rate_excludes_the_time_of_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    rows, _ = train(tmp_path, max_epochs=2, log_every_n_steps=3)
    # The first rate is of steps 1 to 3. Step 4 is followed by a validation, which starts a new
    # measurement, so the second rate is of steps 5 and 6 alone.
    assert logged(rows, "train/images_per_second") == {2: 24, 5: 16}


def test_every_rank_of_a_sharded_training_takes_part_in_the_gradient_norm() -> None:
    # torchrun starts ranks that have no logger.
    run = Trainer(strategy=FullyShardStrategy(), accelerator="cpu", devices=2, logger=False)
    add_run_callbacks(run, None)
    assert any(isinstance(callback, Throughput) for callback in run.callbacks)  # type: ignore[attr-defined]
