"""The same seed on the same machine gives the same weights, bit for bit, however the images are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer, seed_everything
from test_data import Few, same_weights
from torch import nn

from synflow_pl import Classifier, PruneAtInit
from synflow_pl.pruners import SNIP
from synflow_pl.training import Reseed

WAYS: list[dict[str, Any]] = [{}, *({"pipeline": "torchvision", "num_workers": workers} for workers in (0, 1, 4))]


def trained(folder: Path, **data: Any) -> Classifier:
    seed_everything(3)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
    module = Classifier(network, optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    callbacks = [Reseed(), PruneAtInit(SNIP(), density=0.2)]
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = Trainer(max_epochs=2, limit_val_batches=1, accelerator="cpu", default_root_dir=folder, callbacks=callbacks, **quiet)
    trainer.fit(module, datamodule=Few(val_size=5000 - 203, **data))
    return module


def test_zero_one_and_four_workers_of_one_pipeline_and_the_other_give_identical_weights(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = (trained(tmp_path, **way) for way in WAYS)
    finally:
        torch.set_num_threads(threads)
    assert len(others) == 3
    assert all(same_weights(first, other) for other in others)


def test_another_seed_gives_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trained(tmp_path)
    other = trained(tmp_path, seed=1)
    assert not same_weights(first, other)
