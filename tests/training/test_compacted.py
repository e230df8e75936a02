"""A compacted network trains like the full one and has checkpoints of full shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from synflow_pl import Classifier, PruneAtInit, load_weights
from synflow_pl.networks import ResNet
from synflow_pl.pruners import GradualMagnitude, SynFlow
from tests.processes import run_script

SHAPE = (2, 8, 8)
IMAGES = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Classes(LightningDataModule):
    input_shape = SHAPE

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(IMAGES, torch.arange(64) % 10), batch_size=16)


def classifier() -> Classifier:
    torch.manual_seed(0)
    optimizer = lambda p: torch.optim.SGD(  # noqa: E731
        p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3
    )
    schedule = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)  # noqa: E731
    # Lightning converts the module to double precision only after it has loaded a checkpoint.
    return Classifier(
        ResNet(8, width=8, input_shape=SHAPE), optimizer=optimizer, scheduler=schedule
    ).double()


class Sizes(Callback):
    """Record the number of parameters of the network, its optimiser and its wrapper."""

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        self.network = sum(p.numel() for p in module.network.parameters())
        self.optimiser = sum(
            p.numel() for group in trainer.optimizers[0].param_groups for p in group["params"]
        )
        self.wrapped = sum(p.numel() for p in trainer.strategy.model.parameters())


def fit(
    folder: Path,
    epochs: int = 2,
    ckpt_path: Path | None = None,
    callbacks: tuple[Any, ...] = (),
    **options: Any,
) -> Any:
    module, callback, sizes = (
        classifier(),
        PruneAtInit(SynFlow(), density=0.05, rounds=10, **options),
        Sizes(),
    )
    saving = ModelCheckpoint(dirpath=folder, save_last=True)
    trainer = Trainer(
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        precision="64-true",
        callbacks=[callback, saving, sizes, *callbacks],
    )
    trainer.fit(module, Classes(), ckpt_path=ckpt_path)
    return module, sizes, callback


def test_a_compacted_training_gives_the_same_outputs_as_a_full_one(tmp_path: Path) -> None:
    whole, full, _ = fit(tmp_path / "whole")
    small, less, _ = fit(tmp_path / "small", compact=True)
    assert less.network == less.optimiser == less.wrapped < full.network / 2
    with torch.no_grad():
        truth = whole.eval()(IMAGES)
        torch.testing.assert_close(small.eval()(IMAGES), truth, rtol=1e-9, atol=1e-9)
    assert truth.std(0).max() > 0.1


def test_after_a_compacted_training_network_and_checkpoint_have_the_full_shapes(
    tmp_path: Path,
) -> None:
    module, _, callback = fit(tmp_path, compact=True)
    plain = ResNet(8, width=8, input_shape=SHAPE).double()
    shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    assert {name: tensor.shape for name, tensor in module.network.state_dict().items()} == shapes
    load_weights(plain, tmp_path / "last.ckpt")
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            plain.state_dict().values(), module.network.state_dict().values(), strict=True
        )
    )
    assert all(not plain.get_parameter(name)[~mask].any() for name, mask in callback.masks.items())


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, _, _ = fit(tmp_path / "whole", epochs=3, compact=True)
    fit(tmp_path / "half", epochs=1, compact=True)
    resumed, sizes, _ = fit(
        tmp_path / "half", epochs=3, ckpt_path=tmp_path / "half" / "last.ckpt", compact=True
    )
    assert sizes.network < sum(p.numel() for p in resumed.network.parameters()) / 2
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)
    )


def test_resuming_with_another_value_of_compact_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, epochs=1, compact=True)
    with pytest.raises(ValueError, match="compact: the checkpoint was trained with compact true"):
        fit(tmp_path, epochs=2, ckpt_path=tmp_path / "last.ckpt")


def test_freezing_dead_units_keeps_them_at_zero_and_gives_a_smaller_network(tmp_path: Path) -> None:
    _, loose, _ = fit(tmp_path / "loose", compact=True)
    module, frozen, callback = fit(tmp_path / "frozen", compact=True, freeze_dead=True)
    assert frozen.network < loose.network
    pruned = {name: ~callback.masks[name] for name in callback.masks.followers}
    assert pruned
    assert all(
        not module.network.get_parameter(name)[where].any() for name, where in pruned.items()
    )
    full, _, _ = fit(tmp_path / "full", freeze_dead=True)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(IMAGES), full.eval()(IMAGES), rtol=1e-9, atol=1e-9)


def test_options_that_exclude_compact_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="compact: true needs masks that are final before the first step"
    ):
        PruneAtInit(GradualMagnitude(), density=0.1, compact=True)
    with pytest.raises(
        ValueError, match="compact: true needs masks that are final before the first step"
    ):
        PruneAtInit(SynFlow(), density=0.1, at_epoch=1, compact=True)
    with pytest.raises(ValueError, match="compact: EMAWeightAveraging has copied the network"):
        fit(tmp_path, compact=True, callbacks=(EMAWeightAveraging(),))


TWO_PROCESSES = """
from pathlib import Path
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from synflow_pl import PruneAtInit
from synflow_pl.pruners import SynFlow
from tests.training.test_compacted import Classes, Sizes, classifier

def fit(epochs, ckpt_path=None, folder="two"):
    module, sizes = classifier(), Sizes()
    pruning = PruneAtInit(SynFlow(), density=0.05, rounds=10, compact=True)
    saving = ModelCheckpoint(dirpath=folder, save_last=True)
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", devices=2, strategy="ddp",
        precision="64-true", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[saving, pruning, sizes])
    trainer.fit(module, Classes(), ckpt_path=ckpt_path)
    assert isinstance(trainer.strategy, DDPStrategy) and trainer.world_size == 2
    full = sum(p.numel() for p in module.network.parameters())
    assert sizes.network == sizes.optimiser == sizes.wrapped < full / 2
    weights = torch.cat([p.detach().flatten() for p in module.network.parameters()])
    first, second = trainer.strategy.all_gather(weights)
    assert torch.equal(first, second)
    return weights

whole = fit(2)
fit(1, folder="half")
resumed = fit(2, ckpt_path=Path("half") / "last.ckpt", folder="half")
assert torch.equal(whole, resumed)
"""


@pytest.mark.slow
def test_two_processes_train_the_same_small_network_and_resume(tmp_path: Path) -> None:
    run_script(TWO_PROCESSES, tmp_path, limit=300)
