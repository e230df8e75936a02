"""The gradient's norm over what lives, and images a second by a clock that ticks once each time it
is read.
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

from synflow_pl.data import Digits
from synflow_pl.networks import FC
from synflow_pl.pruners import Magnitude
from synflow_pl.training import Classifier, PruneAtInit, throughput
from synflow_pl.training.throughput import Throughput


class Squares(Callback):
    """The norm of the gradient at each step, of the weights that live, and biases."""

    def __init__(self, pruning: PruneAtInit) -> None:
        self.pruning, self.living, self.all = pruning, [], []  # type: ignore[var-annotated]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        gradients = {
            name: p.grad.detach().clone() for name, p in pl_module.network.named_parameters()
        }
        self.all.append(sum(float((g**2).sum()) for g in gradients.values()) ** 0.5)
        for name, mask in (self.pruning.masks or {}).items():
            gradients[name] *= mask
        self.living.append(sum(float((g**2).sum()) for g in gradients.values()) ** 0.5)


def train(folder: Path, **options: Any) -> tuple[list[dict[str, str]], Squares]:
    pruning = PruneAtInit(Magnitude(), density=0.5)
    squares = Squares(pruning)
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[
            squares,
            pruning,
            Throughput(),
        ],  # the first sees the gradients before removed weights' are zeroed
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


def test_the_norm_is_that_of_living_weights_on_the_steps_that_are_logged(tmp_path: Path) -> None:
    rows, squares = train(tmp_path, max_epochs=1, log_every_n_steps=2)
    norms = logged(rows, "train/gradient_norm")
    assert norms == pytest.approx({1: squares.living[1], 3: squares.living[3]}, rel=1e-4)
    assert norms[1] < 0.99 * squares.all[1]


def test_images_are_counted_since_the_last_logging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    rows, _ = train(tmp_path, max_epochs=1, log_every_n_steps=2)
    # Read when the first of two steps begins and when the second ends: one tick for 16 images.
    assert logged(rows, "train/images_per_second") == {1: 16, 3: 16}


def test_steps_whose_gradients_are_accumulated_count_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    rows, _ = train(tmp_path, max_epochs=1, log_every_n_steps=1, accumulate_grad_batches=2)
    assert logged(rows, "train/images_per_second") == {0: 16, 1: 16}


def test_validation_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    rows, _ = train(tmp_path, max_epochs=2, log_every_n_steps=3)
    # Steps 1 to 3; step 4, validation; then 5 and 6 of the second epoch alone; 7 and 8 are not
    # logged.
    assert logged(rows, "train/images_per_second") == {2: 24, 5: 16}
