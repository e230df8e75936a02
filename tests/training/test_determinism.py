"""Equal seeds give bit-identical weights on one machine, for every way to load images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer, seed_everything
from test_data import Few, same_weights
from torch import nn

from synflow_pl import Classifier, PruneAtInit
from synflow_pl.pruners import SNIP
from synflow_pl.training import Reseed


def trained(folder: Path, **data: Any) -> Classifier:
    seed_everything(3)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(4 * 26 * 26, 10),
    )
    module = Classifier(network, optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    callbacks = [Reseed(), PruneAtInit(SNIP(), density=0.2)]
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = Trainer(
        max_epochs=2,
        limit_train_batches=6,
        limit_val_batches=1,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=callbacks,
        **quiet,
    )
    trainer.fit(module, datamodule=Few(val_size=5000 - 203, **data))
    return module


def test_identical_weights_result_for_any_number_of_workers_and_from_two_runs_in_memory(
    tmp_path: Path,
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        by_workers = [
            trained(tmp_path, pipeline="torchvision", num_workers=workers) for workers in (0, 1, 4)
        ]
        from_memory = [trained(tmp_path) for _ in range(2)]
    finally:
        torch.set_num_threads(threads)
    assert all(same_weights(by_workers[0], other) for other in by_workers[1:])
    assert same_weights(*from_memory)


def test_both_pipelines_give_identical_weights_without_augmentation(tmp_path: Path) -> None:
    assert same_weights(
        trained(tmp_path, augment=False),
        trained(tmp_path, augment=False, pipeline="torchvision", num_workers=1),
    )


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    first = trained(tmp_path)
    other = trained(tmp_path, seed=1)
    assert not same_weights(first, other)


def test_a_step_on_the_cpu_uses_the_seed_of_its_batch() -> None:
    from types import SimpleNamespace

    from synflow_pl.data.counter_rng import random_numbers

    seed_everything(3)
    trainer: Any = SimpleNamespace(global_rank=1, fit_loop=SimpleNamespace(total_batch_idx=7))
    Reseed().on_train_batch_start(trainer, Classifier(nn.Linear(1, 2), num_classes=2))
    drawn, seed = torch.rand(3), torch.initial_seed()
    assert seed == int(random_numbers(3, 1, torch.tensor([7])))
    torch.manual_seed(seed)
    assert torch.equal(drawn, torch.rand(3))
