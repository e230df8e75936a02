"""A training of any prunable parameters is resumed bit for bit, with their zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from synflow_pl import PruneAtInit
from synflow_pl.pruners import SynFlow
from synflow_pl.training import Reseed
from tests.acting_networks import NETWORKS, build

EPOCHS = 3


class Module(LightningModule):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.network, example = build(name)
        data = torch.Generator().manual_seed(1)
        inputs = torch.randn(24, *example.shape[1:], generator=data)
        with torch.no_grad():
            targets = torch.randn(self.network(inputs).shape, generator=data)
        self.rows = TensorDataset(inputs, targets)
        self.network.train()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        noise = 0.1 * torch.randn_like(batch[0])
        return functional.mse_loss(self.network(batch[0] + noise), batch[1])

    def train_dataloader(self) -> Any:
        return DataLoader(self.rows, batch_size=8)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def fit(folder: Path, name: str, path: Path | None = None) -> tuple[Module, PruneAtInit, Trainer]:
    module = Module(name)
    callback = PruneAtInit(SynFlow(), density=0.4, rounds=3)
    saving = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
    torch.manual_seed(0)
    run = Trainer(
        max_epochs=EPOCHS,
        callbacks=[callback, Reseed(), saving],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    run.fit(module, ckpt_path=path, weights_only=False)
    return module, callback, run


@pytest.mark.parametrize("name", NETWORKS)
def test_a_resumed_training_of_acting_parameters_is_the_undisturbed_one(
    tmp_path: Path, name: str
) -> None:
    module, callback, run = fit(tmp_path / "whole", name)
    other, resumed, second = fit(tmp_path / "second", name, tmp_path / "whole" / "epoch=0.ckpt")
    assert run.global_step == second.global_step == 3 * EPOCHS
    assert callback.masks is not None
    assert resumed.masks is not None
    assert set(NETWORKS[name][2]) <= callback.masks.keys()
    assert list(callback.masks) == list(resumed.masks)
    for key, mask in callback.masks.items():
        assert torch.equal(mask, resumed.masks[key])
        assert not bool(other.network.get_parameter(key)[~mask].any())
    for key, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    states = [trainer.optimizers[0].state_dict()["state"] for trainer in (run, second)]
    for index, moments in states[0].items():
        for key, value in moments.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][index][key]))
