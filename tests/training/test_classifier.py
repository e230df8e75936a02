from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.cli import ReduceLROnPlateau
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from synflow_pl import Classifier
from synflow_pl.training import WarmupCosine


class Fixed(nn.Module):
    """Network whose logits do not depend on the image, so that loss and accuracy are known."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def evaluate(labels: list[int], batch_size: int) -> dict[str, float]:
    module = Classifier(Fixed([6.0, 5, 4, 3, 2, 1, 0]), num_classes=7)
    loader = DataLoader(
        TensorDataset(torch.zeros(len(labels), 1, 1, 1), torch.tensor(labels)),
        batch_size=batch_size,
    )
    run = Trainer(
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accelerator="cpu",
    )
    result: Any = run.test(module, loader, verbose=False)
    return result[0]


@pytest.mark.parametrize("batch_size", [2, 5])
def test_metrics_weight_every_image_equally_for_any_batch_size(batch_size: int) -> None:
    # The network predicts class 0, and its top five are 0 to 4: of these five images, one is
    # correct and four are in the top five.
    result = evaluate([0, 1, 2, 4, 6], batch_size)
    assert result["test/accuracy"] == pytest.approx(1 / 5)
    assert result["test/accuracy_top5"] == pytest.approx(4 / 5)
    total = math.log(sum(math.exp(x) for x in range(7)))
    assert result["test/loss"] == pytest.approx(total - (6 + 5 + 4 + 2 + 0) / 5)


def test_few_classes_have_no_top_five_accuracy() -> None:
    assert "accuracy_top5" not in Classifier(Fixed([0.0, 1.0]), num_classes=2).test_metrics
    with pytest.raises(ValueError, match="num_classes: 1 must be at least 2"):
        Classifier(Fixed([0.0]), num_classes=1)


def test_weight_decay_can_exempt_norms_and_biases() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))

    def groups(everything: bool) -> list[tuple[int, float]]:
        optimizer: Any = Classifier(
            network,
            2,
            lambda parameters: torch.optim.SGD(parameters, lr=0.1, weight_decay=1e-4),
            decay_norm_and_bias=everything,
        ).configure_optimizers()
        return [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]

    assert groups(True) == [(6, 1e-4)]
    assert groups(False) == [(2, 1e-4), (4, 0.0)]


def test_a_plateau_schedule_is_configured_with_its_monitor() -> None:
    module = Classifier(
        Fixed([0.0, 1.0]),
        2,
        scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, monitor="val/loss"),
    )
    result: Any = module.configure_optimizers()
    assert result["lr_scheduler"]["monitor"] == "val/loss"


def test_predictions_are_probabilities() -> None:
    module = Classifier(Fixed([0.0, math.log(3)]), 2)
    torch.testing.assert_close(
        module.predict_step((torch.zeros(1, 1, 1, 1), torch.zeros(1)), 0),
        torch.tensor([[0.25, 0.75]]),
    )


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = WarmupCosine(optimizer, epochs=12, warmup=2)
    rates = []
    for _ in range(13):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.01)
    assert rates[1] == pytest.approx(0.505)
    assert rates[2:] == pytest.approx([(1 + math.cos(math.pi * k / 10)) / 2 for k in range(11)])
    with pytest.raises(ValueError, match="warmup=5 must be at least 1 and less than epochs=5"):
        WarmupCosine(optimizer, epochs=5, warmup=5)


def test_training_loss_falls(tmp_path: Path) -> None:
    images = torch.randn(64, 1, 2, 2)
    loader = DataLoader(TensorDataset(images, (images.sum((1, 2, 3)) > 0).long()), batch_size=16)
    module = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), 2)
    run = Trainer(
        max_epochs=10,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        accelerator="cpu",
    )
    run.fit(module, loader)
    assert run.callback_metrics["train/accuracy"] > 0.9
