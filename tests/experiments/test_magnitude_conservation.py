"""Squared weights of the layers during training."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from synflow_pl import Classifier
from synflow_pl.experiments import SquaredMagnitudes


def train(network: nn.Module, epochs: int, lr: float, tmp_path: object) -> SquaredMagnitudes:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(16, 4, generator=generator), torch.arange(16) % 3
    recorder = SquaredMagnitudes()
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=str(tmp_path),
        log_every_n_steps=1,
    )
    classifier = Classifier(
        network, num_classes=3, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=lr)
    )
    trainer.fit(classifier, DataLoader(TensorDataset(images, labels), batch_size=16))
    return recorder


def squares(network: nn.Module) -> list[float]:
    return [
        float(parameter.detach().double().square().sum())
        for parameter in network.parameters()
        if parameter.dim() > 1
    ]


def test_squared_weights_are_recorded_before_the_first_epoch_and_after_each(
    tmp_path: object,
) -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    before = squares(network)
    recorder = train(network, 2, 0.1, tmp_path)
    assert [snapshot.epoch for snapshot in recorder.snapshots] == [0, 1, 2]
    first, *_, last = recorder.snapshots
    assert [layer.total for layer in first.layers] == pytest.approx(before)
    assert [layer.total for layer in last.layers] == pytest.approx(squares(network))
    assert [(layer.layer, layer.size) for layer in last.layers] == [
        ("0.weight", 20),
        ("2.weight", 15),
    ]


def test_small_steps_change_the_total_of_every_layer_by_the_same_amount(
    tmp_path: object,
) -> None:
    def relu(*layers: nn.Module) -> nn.Module:
        return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])

    network = relu(*(nn.Linear(i, o, bias=False) for i, o in ((4, 20), (20, 8), (8, 3))))
    recorder = train(network, 60, 0.01, tmp_path)
    changes: list[Tensor] = [
        torch.tensor([layer.total for layer in snapshot.layers]) for snapshot in recorder.snapshots
    ]
    change = changes[-1] - changes[0]
    assert float(change.abs().min()) > 0.01
    assert float((change / change.mean() - 1).abs().max()) < 0.02
