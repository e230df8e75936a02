"""Monitored metrics are checked, and tuners set learning rate and batch size of the classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
)
from pytorch_lightning.cli import ReduceLROnPlateau
from pytorch_lightning.tuner import Tuner
from test_prune_at_init import Classes, trainer
from test_trainer_features import Both
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from synflow_pl import Classifier, PruneAtInit
from synflow_pl.networks import FC
from synflow_pl.pruners import SynFlow

RATES = [1.0, 0.5]


def halving(optimizer: Any) -> Any:
    return LambdaLR(optimizer, lambda epoch: 0.5**epoch)


def build(scheduler: Any = halving) -> Classifier:
    torch.manual_seed(0)
    return Classifier(FC((1, 2, 4), depth=3, width=16), scheduler=scheduler)


class Rates(Callback):
    """Record the learning rate of each epoch."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_the_learning_rate_finder_sets_the_rate_of_the_classifier_and_its_schedule(
    tmp_path: Path,
) -> None:
    finder, rates, module = (
        LearningRateFinder(num_training_steps=30, early_stop_threshold=None),
        Rates(),
        build(),
    )
    run = trainer(
        tmp_path,
        finder,
        PruneAtInit(SynFlow(), density=0.2, rounds=2),
        rates,
        enable_checkpointing=False,
    )
    run.fit(module, Both())
    assert finder.optimal_lr is not None
    suggested = finder.optimal_lr.suggestion()
    assert suggested is not None
    assert module.lr == suggested != 0.1
    assert rates.rates == pytest.approx([suggested * rate for rate in RATES])


def test_the_tuner_sets_the_learning_rate_of_the_next_fit(tmp_path: Path) -> None:
    rates, module = Rates(), build()
    run = trainer(
        tmp_path, PruneAtInit(SynFlow(), density=0.2, rounds=2), rates, enable_checkpointing=False
    )
    finder = Tuner(run).lr_find(
        module, datamodule=Both(), num_training=30, early_stop_threshold=None
    )
    assert finder is not None
    suggested = finder.suggestion()
    assert suggested is not None
    rates.rates.clear()
    run.fit(module, Both())
    assert rates.rates == pytest.approx([suggested * rate for rate in RATES])


def test_a_classifier_without_a_learning_rate_uses_that_of_its_optimiser(tmp_path: Path) -> None:
    rates, module = Rates(), build()
    trainer(tmp_path, rates, enable_checkpointing=False).fit(module, Classes())
    assert module.lr is None
    assert rates.rates == [0.1, 0.05]


@pytest.mark.parametrize("tuner", [False, True], ids=["callback", "tuner"])
def test_the_batch_size_finder_sets_the_batch_size_of_the_data(tmp_path: Path, tuner: bool) -> None:
    class Sized(Both):
        batch_size = 4

        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(Classes.train_dataloader(self).dataset, batch_size=self.batch_size)

    data, options = Sized(), {"steps_per_trial": 1, "max_trials": 3, "init_val": 8}
    pruning = PruneAtInit(SynFlow(), density=0.2, rounds=2)
    if tuner:
        run = trainer(tmp_path, pruning, enable_checkpointing=False)
        assert Tuner(run).scale_batch_size(build(), datamodule=data, **options) == 32  # type: ignore[arg-type]
    else:
        finder = BatchSizeFinder(**options)  # type: ignore[arg-type]
        trainer(tmp_path, finder, pruning, enable_checkpointing=False).fit(build(), data)
        assert finder.optimal_batch_size == 32
    assert data.batch_size == 32
    assert pruning.masks is not None


def plateau(monitor: str) -> Any:
    return lambda optimizer: ReduceLROnPlateau(optimizer, monitor=monitor)


@pytest.mark.parametrize(
    ("callback", "scheduler", "message"),
    [
        (
            lambda: EarlyStopping("val/loss"),
            None,
            "trainer.callbacks: EarlyStopping monitors 'val/loss', but nothing is validated on",
        ),
        (
            lambda: ModelCheckpoint(monitor="val/accuracy"),
            None,
            "ModelCheckpoint monitors 'val/accuracy', but nothing is validated",
        ),
        (
            Callback,
            plateau("val/loss"),
            "model.scheduler: ReduceLROnPlateau monitors 'val/loss', but nothing is validated on",
        ),
        (
            lambda: EarlyStopping("train_loss"),
            None,
            "'train_loss', which is never logged; did you mean 'train/loss'",
        ),
    ],
    ids=range(4),
)
def test_a_metric_that_is_never_logged_is_refused_before_pruning(
    tmp_path: Path, callback: Any, scheduler: Any, message: str
) -> None:
    pruning = PruneAtInit(SynFlow(), density=0.2)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, callback(), pruning, max_epochs=1).fit(build(scheduler), Classes())
    assert pruning.masks is None
    pruning = PruneAtInit(SynFlow(), density=0.2)
    if not message.endswith("'train/loss'"):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, callback(), pruning, max_epochs=1, limit_val_batches=0).fit(
                build(scheduler), Both()
            )


@pytest.mark.parametrize("every", [1, 2])
def test_a_plateau_schedule_steps_in_epochs_with_a_validation(tmp_path: Path, every: int) -> None:
    module = build(plateau("val/loss"))
    run = trainer(
        tmp_path,
        EarlyStopping("val/loss", patience=9),
        PruneAtInit(None),
        max_epochs=4,
        check_val_every_n_epoch=every,
    )
    run.fit(module, Both())
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 4 // every


def test_metrics_of_training_can_be_monitored_without_a_validation(tmp_path: Path) -> None:
    stop = EarlyStopping("train/loss", check_on_train_epoch_end=True)
    run = trainer(tmp_path, stop, PruneAtInit(None), max_epochs=2, check_val_every_n_epoch=2)
    run.fit(build(plateau("train/loss")), Classes())
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 2


def test_torchs_plateau_schedule_is_refused_since_it_names_no_metric() -> None:
    with pytest.raises(
        ValueError,
        match=r"model.scheduler: .* does not say which metric it monitors; use pytorch_lightning.c",
    ):
        build(torch.optim.lr_scheduler.ReduceLROnPlateau).configure_optimizers()
