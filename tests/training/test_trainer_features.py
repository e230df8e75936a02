"""Pruning works with the features of the Trainer: averages, tuners, optimisers, strategies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from pytorch_lightning.tuner import Tuner
from test_prune_at_init import OPTIMIZERS, Classes, Numbers, Regression, classifier, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from synflow_pl import Classifier, PruneAtInit
from synflow_pl.pruners import GradualMagnitude, Magnitude, Pruner, RigL, SynFlow
from synflow_pl.training.checkpoints import KEY

TOTAL = 544  # number of weights of classifier(); an epoch has eight batches
TENTH = 55


def count_kept(module: Any) -> int:
    return sum(int(p.count_nonzero()) for p in module.network.parameters() if p.dim() > 1)


class RecordingClassifier(Classifier):
    """Record the number of kept weights in each forward pass, including those of tuners."""

    def __init__(self, **options: Any) -> None:
        super().__init__(classifier().network, optimizer=OPTIMIZERS["SGD"], **options)
        self.seen: list[tuple[str, int]] = []
        self.lr = 0.05
        self.batch_size = 8

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(
            self.parameters(), lr=self.lr, momentum=0.9, nesterov=True, weight_decay=1e-2
        )

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((self.trainer.state.stage.value, count_kept(self)))  # type: ignore[union-attr]
        return super().forward(images)


class Both(Classes):
    """Data module whose training images are also its validation images."""

    def train_dataloader(self) -> DataLoader[Any]:
        size = (
            getattr(self.trainer.lightning_module, "batch_size", 8)
            if self.trainer is not None
            else 8
        )
        return DataLoader(super().train_dataloader().dataset, batch_size=size)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(super().train_dataloader().dataset, batch_size=8)


def fit(
    folder: Path, *callbacks: Callback, module: RecordingClassifier | None = None, **options: Any
) -> RecordingClassifier:
    module = module or RecordingClassifier()
    trainer(folder, *callbacks, **options).fit(module, Both())
    return module


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.05},
        {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"},
        {"overfit_batches": 2},
        {"fast_dev_run": True},
        {"limit_train_batches": 3, "val_check_interval": 2},
        {"detect_anomaly": True},
    ],
    ids=lambda options: " ".join(options),
)
def test_every_forward_pass_sees_the_pruned_network(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    module = fit(tmp_path, PruneAtInit(SynFlow(), density=0.1), **options)
    # Lightning's sanity check runs first; fast_dev_run skips it and the validation.
    assert {stage for stage, _ in module.seen} >= {"train", "validate"} - (
        {"validate"} if options.get("fast_dev_run") else set()
    )
    assert {count for _, count in module.seen} == {TENTH}
    assert count_kept(module) == TENTH


def test_lightnings_sanity_check_validates_the_pruned_network(tmp_path: Path) -> None:
    module = fit(tmp_path, PruneAtInit(SynFlow(), density=0.1), num_sanity_val_steps=2)
    assert module.seen[:3] == [("sanity_check", TENTH)] * 2 + [("train", TENTH)]


def test_early_stopping_leaves_the_network_sparse(tmp_path: Path) -> None:
    module = RecordingClassifier()
    module.lr = 0.0  # the loss does not change, so training stops after a patience of two epochs
    stop = EarlyStopping("val/loss", patience=2)
    saving = ModelCheckpoint(dirpath=tmp_path, filename="last")
    module = fit(
        tmp_path, PruneAtInit(SynFlow(), density=0.1), stop, saving, module=module, max_epochs=50
    )
    assert stop.stopped_epoch == 2
    assert count_kept(module) == TENTH
    assert "masks" in torch.load(tmp_path / "last.ckpt", weights_only=True)[KEY]


# -- averages

LATER: list[Any] = [
    (Magnitude(), {}),
    (Magnitude(), {"at_epoch": 1}),
    (Magnitude(), {"at_epoch": 3}),
    (GradualMagnitude(end_fraction=0.75), {"rounds": 6}),
]


@pytest.mark.parametrize(
    ("pruner", "options"), LATER, ids=["at once", "after 1", "after 3", "gradually"]
)
@pytest.mark.parametrize("kind", ["exponential", "stochastic"])
def test_averages_are_zero_where_the_network_is_pruned_at_every_step(
    tmp_path: Path, kind: str, pruner: Pruner, options: dict[str, Any]
) -> None:
    pruning = PruneAtInit(pruner, density=0.25, **options)
    averaging = (
        EMAWeightAveraging(decay=0.9)
        if kind == "exponential"
        else StochasticWeightAveraging(0.01, swa_epoch_start=1)
    )
    nonzeros: list[int] = []

    class CheckAverage(Callback):
        """Count nonzero pruned weights of the average after each batch and during validation."""

        def _check(self, network: nn.Module) -> None:
            if pruning.masks is not None:
                nonzeros.append(
                    sum(
                        int(p[~mask].count_nonzero())
                        for p, mask in pruning.masks.parameters(network)
                    )
                )

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            average: Any = averaging._average_model
            self._check(average.module.network if kind == "exponential" else average.network)

        def on_validation_batch_end(
            self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
        ) -> None:
            self._check(pl_module.network)  # type: ignore[arg-type]

    # The average of StochasticWeightAveraging starts at epoch 1.
    module = fit(tmp_path, averaging, pruning, CheckAverage(), max_epochs=5)
    assert pruning.masks is not None
    assert pruning.masks.kept == TOTAL // 4
    assert len(nonzeros) > 20
    assert not any(nonzeros)
    assert count_kept(module) == TOTAL // 4


# -- tuners


def test_the_learning_rate_finder_tunes_the_pruned_network(tmp_path: Path) -> None:
    pruning = PruneAtInit(SynFlow(), density=0.1)
    finder = LearningRateFinder(num_training_steps=20, attr_name="lr")
    module = fit(tmp_path, finder, pruning, max_epochs=3)
    assert finder.optimal_lr is not None
    assert len(module.seen) > 20 + 3 * 8  # steps of the tuner and of the training
    assert {count for _, count in module.seen} == {TENTH}
    assert pruning.masks is not None
    assert pruning.masks.kept == count_kept(module) == TENTH


def test_the_batch_size_finder_tunes_the_pruned_network(tmp_path: Path) -> None:
    pruning = PruneAtInit(SynFlow(), density=0.1)
    finder = BatchSizeFinder(steps_per_trial=1, max_trials=3, init_val=8)
    module = fit(tmp_path, finder, pruning)
    assert finder.optimal_batch_size == module.batch_size == 32  # 8, doubled twice
    assert {count for _, count in module.seen} == {TENTH}


def test_a_tuner_outside_fit_tunes_with_the_masks_of_the_later_fit(tmp_path: Path) -> None:
    pruning, module, data = PruneAtInit(SynFlow(), density=0.1), RecordingClassifier(), Both()
    run = trainer(tmp_path, pruning)
    suggested = Tuner(run).lr_find(module, datamodule=data, num_training=20, attr_name="lr")
    assert suggested is not None
    masks = pruning.masks
    run.fit(module, data)
    assert {count for _, count in module.seen} == {TENTH}
    assert masks is not None
    assert pruning.masks is not None
    assert all(torch.equal(masks[name], pruning.masks[name]) for name in masks)


@pytest.mark.parametrize(
    "pruning",
    [{"at_epoch": 1}, {"pruner": GradualMagnitude(end_fraction=1.0)}],
    ids=["later", "gradual"],
)
def test_a_tuner_that_runs_before_the_pruning_warns_that_it_tunes_a_dense_network(
    tmp_path: Path, pruning: Any
) -> None:
    callback = PruneAtInit(**{"pruner": Magnitude(), "density": 0.25, **pruning})
    finder = LearningRateFinder(num_training_steps=20, attr_name="lr")
    with pytest.warns(
        UserWarning,
        match="LearningRateFinder will tune the dense network, which is pruned only later",
    ):
        module = fit(tmp_path, finder, callback)
    assert count_kept(module) == TOTAL // 4


# -- several optimisers


class Alternating(Regression):
    """Module with two optimisers, which need manual optimisation."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:  # type: ignore[override]
        features, target = batch
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            loss = nn.functional.mse_loss(self(features).squeeze(1), target)
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, 0.1, "norm")
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [
            OPTIMIZERS["SGD"](self.body.parameters()),
            OPTIMIZERS["AdamW"](self.head.parameters()),
        ]


def test_several_optimisers_keep_pruned_weights_at_zero(tmp_path: Path) -> None:
    module, pruning = Alternating(), PruneAtInit(SynFlow(), density=0.1)
    trainer(tmp_path, pruning, enable_checkpointing=False).fit(module, Numbers())
    assert module.after_step == [0.1] * 16
    assert module.head.weight.any()


# -- strategies that shard


def test_a_strategy_that_shards_in_its_own_way_is_refused_before_the_first_step(
    tmp_path: Path,
) -> None:
    run = trainer(tmp_path, PruneAtInit(SynFlow(), density=0.1))
    run._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(ValueError, match="FSDPStrategy shards parameters or the optimiser's state"):
        PruneAtInit(SynFlow(), density=0.1).setup(run, classifier(), "fit")
    PruneAtInit(None).setup(run, classifier(), "fit")  # the dense network may be sharded


@pytest.mark.parametrize(
    ("pruner", "options", "named"),
    [
        (SynFlow(), {"compact": True}, "compact: true"),
        (SynFlow(), {"at_epoch": 1}, "at_epoch: 1"),
        (GradualMagnitude(), {}, "GradualMagnitude prunes during training"),
        (RigL(), {}, "RigL prunes during training"),
    ],
    ids=["compact", "at_epoch", "gradual", "rigl"],
)
def test_an_option_that_needs_the_whole_network_during_training_is_refused(
    tmp_path: Path, pruner: Pruner, options: dict[str, Any], named: str
) -> None:
    run = trainer(tmp_path)
    run._accelerator_connector.strategy = ModelParallelStrategy()
    with pytest.raises(ValueError, match=f"{named}.*ModelParallelStrategy"):
        PruneAtInit(pruner, density=0.1, **options).setup(run, classifier(), "fit")


def test_averages_of_a_sharded_network_are_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, EMAWeightAveraging())
    run._accelerator_connector.strategy = ModelParallelStrategy()
    with pytest.raises(ValueError, match="EMAWeightAveraging copies the whole network"):
        PruneAtInit(SynFlow(), density=0.1).setup(run, classifier(), "fit")


def test_deepspeed_is_refused_as_a_sharding_strategy() -> None:
    # This attribute is the reason why sharding strategies are refused.
    assert object.__new__(DeepSpeedStrategy).restore_checkpoint_after_setup
    if not _has_deepspeed():
        with pytest.raises(MisconfigurationException, match="DeepSpeed"):
            Trainer(strategy="deepspeed_stage_3", accelerator="cpu", devices=1)


def _has_deepspeed() -> bool:
    from importlib.util import find_spec

    return find_spec("deepspeed") is not None


def test_a_checkpoint_with_masks_cannot_be_resumed_with_a_sharding_strategy(tmp_path: Path) -> None:
    fit(
        tmp_path,
        PruneAtInit(SynFlow(), density=0.1),
        ModelCheckpoint(dirpath=tmp_path, filename="last"),
    )
    run = trainer(tmp_path)
    run._accelerator_connector.strategy = FSDPStrategy()
    run.state.fn = "fit"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="FSDPStrategy shards parameters"):
        PruneAtInit(None).on_load_checkpoint(
            run, classifier(), torch.load(tmp_path / "last.ckpt", weights_only=True)
        )


# -- averages that resume


class WithSwa(Callback):
    """Record the learning rate of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def averaged(
    folder: Path, path: Path | None = None, **saving: Any
) -> tuple[RecordingClassifier, list[float]]:
    rates, module = WithSwa(), RecordingClassifier()
    averaging = StochasticWeightAveraging(0.01, swa_epoch_start=2, annealing_epochs=3)
    keep = ModelCheckpoint(dirpath=folder, filename="{epoch}-{step}", save_top_k=-1, **saving)
    pruning = PruneAtInit(SynFlow(), density=0.1)
    trainer(folder, pruning, averaging, rates, keep, max_epochs=4).fit(
        module, Classes(), ckpt_path=path
    )
    return module, rates.rates


def test_stochastic_weight_averaging_resumes_bit_for_bit_only_between_epochs(
    tmp_path: Path,
) -> None:
    whole, rates = averaged(tmp_path / "epochs")
    for step in (8, 16, 24):
        again, rest = averaged(
            tmp_path / "again", tmp_path / f"epochs/epoch={step // 8 - 1}-step={step}.ckpt"
        )
        assert rest == rates[step:]
        assert all(
            torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
        )
    averaged(tmp_path / "steps", every_n_train_steps=5)
    for step in (10, 15, 20, 25):
        with pytest.raises(
            ValueError, match="StochasticWeightAveraging cannot resume in the middle of epoch"
        ):
            averaged(
                tmp_path / "again", tmp_path / f"steps/epoch={(step - 1) // 8}-step={step}.ckpt"
            )
    # Averaging had not begun at this checkpoint.
    _, rest = averaged(tmp_path / "again", tmp_path / "steps/epoch=0-step=5.ckpt")
    assert rest == rates[5:]
