"""The loss of an epoch is the mean over its images for any batches, ranks, precision and values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from test_classifier import Fixed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from synflow_pl import Classifier
from synflow_pl.training.mean_loss import MeanLoss

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}


def test_batches_are_weighted_by_their_number_of_images() -> None:
    metric = MeanLoss()
    metric.update(torch.tensor(2.0), 30)
    metric.update(torch.tensor(5.0), 3)
    assert float(metric.compute()) == pytest.approx((2 * 30 + 5 * 3) / 33)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinite_losses_are_not_skipped(value: float) -> None:
    metric = MeanLoss()
    metric.update(torch.tensor(2.0), 30)
    metric.update(torch.tensor(value), 3)
    assert not math.isfinite(float(metric.compute()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_sums_are_float32_in_a_module_of_any_precision(dtype: torch.dtype) -> None:
    module = nn.ModuleDict({"loss": MeanLoss()}).to(dtype)
    metric: Any = module["loss"]
    for epoch in range(2):
        for _ in range(1000):
            metric.update(torch.tensor(1.5 + epoch, dtype=dtype, requires_grad=True), 64)
        mean: Tensor = metric.compute()
        assert (float(mean), mean.dtype, mean.requires_grad) == (1.5 + epoch, torch.float32, False)
        metric.reset()


def test_sums_are_float32_under_another_default_dtype() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        metric = MeanLoss()
    finally:
        torch.set_default_dtype(torch.float32)
    metric.reset()
    assert metric.weight.dtype == metric.mean_value.dtype == torch.float32


def fixed_loss(label: int) -> float:
    return math.log(sum(math.exp(x) for x in range(7))) - (6 - label)


def loader(labels: list[int], batch_size: int) -> DataLoader[Any]:
    return DataLoader(
        TensorDataset(torch.zeros(len(labels), 1, 1, 1), torch.tensor(labels)),
        batch_size=batch_size,
    )


def test_a_network_in_half_precision_is_tested_on_all_images() -> None:
    labels = [0] * 1200 + [6] * 400
    module = Classifier(Fixed([6.0, 5, 4, 3, 2, 1, 0]), num_classes=7)
    [result] = Trainer(precision="bf16-true", **QUIET).test(
        module, loader(labels, 32), verbose=False
    )
    # Losses are rounded to bfloat16, in which a count of images would stop growing at 256.
    assert result["test/loss"] == pytest.approx((3 * fixed_loss(0) + fixed_loss(6)) / 4, rel=0.01)
    assert result["test/accuracy"] == pytest.approx(0.75)


def test_each_validation_dataloader_has_its_own_metrics() -> None:
    module = Classifier(Fixed([6.0, 5, 4, 3, 2, 1, 0]), num_classes=7)
    results = Trainer(**QUIET).validate(
        module, [loader([0, 0, 1], 2), loader([6, 0, 0, 0], 3)], verbose=False
    )
    assert [
        each[f"val/loss/dataloader_idx_{index}"] for index, each in enumerate(results)
    ] == pytest.approx(
        [(2 * fixed_loss(0) + fixed_loss(1)) / 3, (3 * fixed_loss(0) + fixed_loss(6)) / 4]
    )
    assert [
        each[f"val/accuracy/dataloader_idx_{index}"] for index, each in enumerate(results)
    ] == pytest.approx([2 / 3, 3 / 4])


class Interrupted(Callback):
    """Raise an error in the second batch of training, validation or test."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 1:
            raise FloatingPointError

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    on_test_batch_start = on_validation_batch_start


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_metrics_do_not_contain_batches_of_an_interrupted_stage(stage: str) -> None:
    module = Classifier(
        Fixed([6.0, 5, 4, 3, 2, 1, 0]),
        7,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
    )
    options: dict[str, Any] = {"max_epochs": 1, **QUIET}
    with pytest.raises(FloatingPointError):
        getattr(Trainer(callbacks=[Interrupted()], **options), stage)(module, loader([6] * 8, 2))
    run = Trainer(**options)
    getattr(run, stage)(module, loader([0] * 8, 2))
    name = {"fit": "train", "validate": "val", "test": "test"}[stage]
    assert float(run.callback_metrics[f"{name}/loss"]) == pytest.approx(fixed_loss(0))
    assert float(run.callback_metrics[f"{name}/accuracy"]) == 1


def test_the_state_dict_of_a_classifier_contains_no_metrics() -> None:
    assert list(Classifier(Fixed([0.0, 1.0]), num_classes=2).state_dict()) == ["network.logits"]
