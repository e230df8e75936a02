"""PruneAtInit prunes any LightningModule and stores its masks in checkpoints."""

from __future__ import annotations

import logging
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from synflow_pl import Classifier, Masks, PruneAtInit, load_weights
from synflow_pl.networks import FC
from synflow_pl.pruners import SNIP, Magnitude, Pruner, PruningState, Random, SynFlow
from synflow_pl.pruners.sanity import SANITY
from synflow_pl.training.checkpoints import KEY
from tests.processes import run_script

OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.005, momentum=0.9, weight_decay=1e-2),
}


class Regression(LightningModule):
    """Regression without classes, without an attribute ``network`` and with its own loss."""

    def __init__(self, optimizer: str = "SGD") -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.head = nn.Linear(16, 1)
        self.optimizer = optimizer
        self.after_step: list[float] = []

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.body(features))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        features, target = batch
        loss = nn.functional.mse_loss(self(features).squeeze(1), target)
        self.log("train/loss", loss)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        weights = [module.weight for module in self.modules() if isinstance(module, nn.Linear)]
        self.after_step.append(
            sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)
        )

    def configure_optimizers(self) -> Any:
        return OPTIMIZERS[self.optimizer](self.parameters())


class Numbers(LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(64, 8, generator=generator)
        return DataLoader(TensorDataset(features, features.sum(1)), batch_size=8, shuffle=True)


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "default_root_dir": folder,
        "log_every_n_steps": 1,
    }
    return Trainer(callbacks=list(callbacks), **(defaults | options))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "extra",
    [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}],
    ids=["plain", "accumulated and clipped"],
)
def test_any_lightning_module_is_sparse_after_every_step(
    tmp_path: Path, optimizer: str, extra: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    module, callback = Regression(optimizer), PruneAtInit(SynFlow(), density=0.1)
    trainer(tmp_path, callback, enable_checkpointing=False, **extra).fit(module, Numbers())
    assert callback.masks is not None
    # The network has 8 * 16 + 16 * 16 + 16 = 400 weights, of which 40 are kept.
    assert (callback.masks.kept, callback.masks.total) == (40, 400)
    assert module.after_step == [0.1] * 16


def test_gradient_clipping_counts_kept_weights_only(tmp_path: Path) -> None:
    norms: list[tuple[Tensor, Tensor]] = []

    class Recording(Regression):
        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            assert callback.masks is not None
            masks = dict(callback.masks)
            grads = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
            kept = [
                grad[masks[name]] if name in masks else grad.flatten()
                for name, grad in grads.items()
            ]
            norms.append(
                (
                    torch.cat(kept).norm(),
                    torch.cat([grad.flatten() for grad in grads.values()]).norm(),
                )
            )

    callback = PruneAtInit(SynFlow(), density=0.1)
    trainer(tmp_path, callback, enable_checkpointing=False, gradient_clip_val=0.1).fit(
        Recording(), Numbers()
    )
    assert len(norms) == 16
    for kept, clipped in norms:
        torch.testing.assert_close(kept, clipped)


def test_pruning_does_not_change_the_random_state_of_training(tmp_path: Path) -> None:
    def losses(*callbacks: Any) -> list[float]:
        seen: list[float] = []

        class Recording(Regression):
            def training_step(self, batch: Any, _: int) -> Tensor:
                seen.append(float(batch[0].sum()))
                return super().training_step(batch, _)

        torch.manual_seed(1)
        trainer(tmp_path, *callbacks, enable_checkpointing=False).fit(Recording(), Numbers())
        return seen

    # The shape of the input is read from a training batch, which must not change their order.
    assert losses(PruneAtInit(Random(), density=0.5)) == losses()


def test_the_network_option_selects_a_submodule(tmp_path: Path) -> None:
    module, callback = (
        Regression(),
        PruneAtInit(Magnitude(), density=0.25, network="body", input_shape=(8,)),
    )
    trainer(tmp_path, callback, max_epochs=1).fit(module, Numbers())
    assert callback.masks is not None
    assert list(callback.masks) == ["0.weight", "2.weight"]
    assert module.head.weight.all()
    with pytest.raises(
        ValueError, match="Regression has no submodule 'backbone'; its children are body, head"
    ):
        trainer(tmp_path, PruneAtInit(Magnitude(), density=0.5, network="backbone")).fit(
            Regression(), Numbers()
        )


def classifier(width: int = 16) -> Classifier:
    torch.manual_seed(0)
    return Classifier(FC((1, 2, 4), depth=3, width=width), optimizer=OPTIMIZERS["SGD"])


class Classes(LightningDataModule):
    input_shape = (1, 2, 4)

    def train_dataloader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(0)
        return DataLoader(
            TensorDataset(torch.randn(64, 1, 2, 4, generator=generator), torch.arange(64) % 10),
            batch_size=8,
        )


def trained(folder: Path, callback: PruneAtInit, **options: Any) -> tuple[Classifier, Path]:
    module = classifier()
    saving = ModelCheckpoint(dirpath=folder / "checkpoints", save_last=True)
    trainer(folder, callback, saving, **options).fit(module, Classes())
    return module, folder / "checkpoints" / "last.ckpt"


def test_a_checkpoint_holds_the_masks_and_only_keys_that_the_plain_network_has(
    tmp_path: Path,
) -> None:
    callback = PruneAtInit(SynFlow(), density=0.1)
    module, path = trained(tmp_path, callback)
    checkpoint = torch.load(path, weights_only=True)
    plain = FC((1, 2, 4), depth=3, width=16)
    assert {
        name.removeprefix("network.") for name in checkpoint["state_dict"]
    } == plain.state_dict().keys()
    masks = Masks.from_state_dict(checkpoint[KEY]["masks"])
    assert masks.kept == -(-masks.total // 10)
    load_weights(plain, path)
    images = torch.randn(5, 1, 2, 4)
    assert torch.equal(plain.eval()(images), module.eval()(images))
    assert all(not plain.get_parameter(name)[~mask].any() for name, mask in masks.items())


def test_a_resumed_run_is_not_pruned_again_and_keeps_its_masks_bit_for_bit(tmp_path: Path) -> None:
    first = PruneAtInit(SynFlow(), density=0.1)
    _, path = trained(tmp_path, first, max_epochs=1)
    assert first.masks is not None

    class Renamed(PruneAtInit):
        """Callback of another class, by which Lightning stores the state of callbacks."""

    # A checkpoint with masks is not pruned again, even with other options and another class.
    again = Renamed(Random(), density=0.7)
    resumed = classifier()
    trainer(tmp_path, again, max_epochs=3).fit(resumed, Classes(), ckpt_path=path)
    assert again.masks is not None
    assert all(torch.equal(again.masks[name], first.masks[name]) for name in first.masks)
    for name, mask in first.masks.items():
        assert not resumed.network.get_parameter(name)[~mask].any()


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, _ = trained(tmp_path / "whole", PruneAtInit(SynFlow(), density=0.1), max_epochs=3)
    _, path = trained(tmp_path / "half", PruneAtInit(SynFlow(), density=0.1), max_epochs=1)
    resumed = classifier()
    trainer(tmp_path, PruneAtInit(SynFlow(), density=0.1), max_epochs=3).fit(
        resumed, Classes(), ckpt_path=path
    )
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)
    )


def test_resuming_without_masks_after_the_time_of_pruning_is_refused(tmp_path: Path) -> None:
    _, path = trained(tmp_path, PruneAtInit(None), max_epochs=1)
    with pytest.raises(
        ValueError, match="was trained without masks and would be pruned in mid-training"
    ):
        trainer(tmp_path, PruneAtInit(SynFlow(), density=0.1), max_epochs=2).fit(
            classifier(), Classes(), ckpt_path=path
        )


def test_a_second_fit_keeps_the_masks(tmp_path: Path) -> None:
    callback, module = PruneAtInit(Magnitude(), density=0.1), classifier()
    trainer(tmp_path, callback, max_epochs=1).fit(module, Classes())
    masks = callback.masks
    trainer(tmp_path, callback, max_epochs=1).fit(module, Classes())
    assert callback.masks is masks


def test_a_network_trains_with_masks_from_a_file(tmp_path: Path) -> None:
    first = PruneAtInit(Random(seed=5), density=0.2)
    trained(tmp_path, first)
    assert first.masks is not None
    first.masks.save(tmp_path / "masks.safetensors")
    second = PruneAtInit(SynFlow(), density=0.5, masks_path=tmp_path / "masks.safetensors")
    module, _ = trained(tmp_path / "second", second)
    assert second.masks is not None
    assert all(torch.equal(second.masks[name], mask) for name, mask in first.masks.items())
    assert all(
        not module.network.get_parameter(name)[~mask].any() for name, mask in first.masks.items()
    )


def test_masks_of_another_network_are_refused_before_training(tmp_path: Path) -> None:
    Masks({"layers.1.weight": torch.ones(2, 2, dtype=torch.bool)}).save(
        tmp_path / "masks.safetensors"
    )
    callback = PruneAtInit(None, masks_path=tmp_path / "masks.safetensors")
    with pytest.raises(
        ValueError,
        match=r"the mask of 'layers\.1\.weight' has shape \(2, 2\), the parameter \(16, 8\)",
    ):
        trainer(tmp_path, callback).fit(classifier(), Classes())


def test_without_a_pruner_the_network_stays_dense(tmp_path: Path) -> None:
    callback = PruneAtInit(None, density=1.0)
    module, _ = trained(tmp_path, callback)
    assert callback.masks is None
    assert all(
        parameter.count_nonzero() > 0.9 * parameter.numel()
        for parameter in module.parameters()
        if parameter.dim() > 1
    )
    with pytest.raises(ValueError, match=r"density=0.1, num_kept=None, rounds=None, but no pruner"):
        PruneAtInit(None, density=0.1)


def test_automatic_rounds_leave_a_path_and_are_recorded(tmp_path: Path) -> None:
    callback = PruneAtInit(SynFlow(), num_kept=5, rounds="auto", margin=0.5)
    pictures = TensorBoardLogger(tmp_path, name="", version="")
    trainer(tmp_path, callback, logger=pictures).fit(classifier(), Classes())
    assert callback.masks is not None
    assert callback.masks.kept == 5
    assert callback.diagnosis is not None
    assert callback.diagnosis.alive
    assert callback.survival is not None
    densities = callback.survival.densities
    assert len(densities) > 3
    assert densities == sorted(densities, reverse=True)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert any(tag.endswith("layers_over_rounds") for tag in events.Tags()["images"])


def test_automatic_rounds_need_a_pruner_that_supports_them() -> None:
    with pytest.raises(ValueError, match=r"rounds: 'auto' needs scores .* those of Magnitude are"):
        PruneAtInit(Magnitude(), density=0.1, rounds="auto")


def test_a_dead_network_of_synflow_recommends_automatic_rounds(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"\(local\), rounds='auto', or on_collapse warn to tr"):
        trainer(tmp_path, PruneAtInit(SynFlow(), num_kept=1, rounds=1)).fit(classifier(), Classes())


def test_a_dead_network_is_an_error_or_with_on_collapse_warn_a_warning(tmp_path: Path) -> None:
    # A single kept weight cannot form a path through three layers.
    with pytest.raises(RuntimeError, match=r"the network is dead: no path .* try more rounds"):
        trainer(tmp_path, PruneAtInit(Magnitude(), num_kept=1)).fit(classifier(), Classes())
    with pytest.warns(UserWarning, match="the network is dead"):
        trainer(tmp_path, PruneAtInit(Magnitude(), num_kept=1, on_collapse="warn")).fit(
            classifier(), Classes()
        )


def test_an_average_of_a_pruned_network_has_the_same_zeros(
    tmp_path: Path,
) -> None:
    callback, module = PruneAtInit(SynFlow(), density=0.1), classifier()
    trainer(tmp_path, callback, max_epochs=1).fit(module, Classes())
    assert callback.masks is not None
    average = torch.optim.swa_utils.AveragedModel(module.network)
    average.update_parameters(module.network)
    assert all(
        not average.module.get_parameter(name)[~mask].any() for name, mask in callback.masks.items()
    )


def test_a_sharding_strategy_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path, PruneAtInit(SynFlow(), density=0.1))
    monkeypatch.setattr(type(run.strategy), "restore_checkpoint_after_setup", True)
    with pytest.raises(ValueError, match="SingleDeviceStrategy shards parameters"):
        run.fit(classifier(), Classes())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_pruned_weights_stay_zero_under_other_precisions(tmp_path: Path, precision: Any) -> None:
    callback, module = PruneAtInit(SynFlow(), density=0.1), classifier()
    trainer(tmp_path, callback, precision=precision).fit(module, Classes())
    assert callback.masks is not None
    assert callback.masks.kept == -(-callback.masks.total // 10)
    assert all(
        not module.network.get_parameter(name)[~mask].any() for name, mask in callback.masks.items()
    )


def test_mixed_precision_gives_the_masks_of_full_precision(tmp_path: Path) -> None:
    masks = []
    for precision in ("32-true", "bf16-mixed"):
        callback = PruneAtInit(SynFlow(), density=0.1)
        trained(tmp_path / precision, callback, precision=precision)
        assert callback.masks is not None
        masks.append(callback.masks)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


class Fractional(Regression):
    """Module with an operation that the linear network has no rule for."""

    def forward(self, features: Tensor) -> Tensor:
        return self.head(torch.frac(self.body(features)))


@pytest.mark.parametrize("pruner", [SynFlow(), Magnitude()], ids=["synflow", "magnitude"])
def test_unsupported_operations_and_all_zero_weights_are_reported(
    tmp_path: Path, pruner: Pruner, caplog: pytest.LogCaptureFixture
) -> None:
    module = Fractional()
    if isinstance(pruner, SynFlow):
        nn.init.zeros_(module.head.weight)
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, PruneAtInit(pruner, density=0.5, rounds=2, input_shape=(8,))).fit(
            module, Numbers()
        )
    lines = [line for record in caplog.records for line in record.message.splitlines()]
    unsupported = [line for line in lines if "operations without a rule" in line]
    assert any("aten.frac.default (off by" in line for line in unsupported)
    assert ("Pruning: zero throughout, so counted as ones: head.weight." in lines) == isinstance(
        pruner, SynFlow
    )


class RecordingSNIP(SNIP):
    """SNIP that records the state that it scores."""

    def score(self, state: PruningState) -> dict[str, Tensor]:
        self.state = state
        return super().score(state)


def test_a_data_driven_pruner_gets_the_pruning_batches_of_the_data_module(
    tmp_path: Path,
) -> None:
    class WithBatches(Classes):
        def pruning_batches(self) -> list[tuple[Tensor, Tensor]]:
            return [
                (torch.ones(3, 1, 2, 4), torch.tensor([0, 1, 2])),
                (torch.ones(1, 1, 2, 4), torch.tensor([3])),
            ]

    pruner = RecordingSNIP()
    trainer(
        tmp_path, PruneAtInit(pruner, density=0.2), max_epochs=1, enable_checkpointing=False
    ).fit(classifier(), WithBatches())
    assert [len(images) for images, _ in pruner.state.batches] == [3, 1]


def scored_on(tmp_path: Path, data: Any, **options: Any) -> list[list[Tensor]]:
    """Return the images that each round scores on."""
    seen: list[list[Tensor]] = []

    class Recording(SNIP):
        def score(self, state: PruningState) -> dict[str, Tensor]:
            seen.append([images.clone() for images, _ in state.batches])
            return super().score(state)

    torch.manual_seed(0)
    callback = PruneAtInit(Recording(), **{"density": 0.2, "rounds": 5} | options)
    trainer(tmp_path, callback, max_epochs=1, enable_checkpointing=False).fit(classifier(), data)
    return seen


class Drawn(Classes):
    def pruning_batches(self, draw: int = 0) -> list[tuple[Tensor, Tensor]]:
        images = torch.randn(6, 1, 2, 4, generator=torch.Generator().manual_seed(draw))
        return [(images[:4], torch.arange(4)), (images[4:], torch.arange(4, 6))]


class Loaded(Classes):
    """Data module with seven batches of 50 images; the pixels of an image are its index."""

    def train_dataloader(self) -> DataLoader[Any]:
        images = torch.arange(350.0).view(-1, 1, 1, 1).expand(-1, 1, 2, 4)
        return DataLoader(
            TensorDataset(images, torch.arange(350) % 10), batch_size=50, shuffle=True
        )


@pytest.mark.parametrize("data", [Drawn, Loaded])
def test_fresh_batches_gives_each_round_other_images(data: type[Classes], tmp_path: Path) -> None:
    same, fresh, again = (
        scored_on(tmp_path, data(), fresh_batches=fresh) for fresh in (False, True, True)
    )
    assert len(same) == len(fresh) == 5
    assert all(torch.equal(a, b) for later in same[1:] for a, b in zip(same[0], later, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(same[0], fresh[0], strict=True))
    assert all(not torch.equal(first[0], second[0]) for first, second in combinations(fresh, 2))
    assert all(
        torch.equal(a, b)
        for x, y in zip(fresh, again, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_fresh_batches_are_consecutive_batches_of_training_epochs(tmp_path: Path) -> None:
    rounds = scored_on(tmp_path, Loaded(), fresh_batches=True)
    assert [[len(images) for images in batches] for batches in rounds] == [[50, 50, 50]] * 5
    # An epoch of seven batches has enough for two rounds of three.
    epochs = [
        torch.cat([images[:, 0, 0, 0] for batches in rounds[at : at + 2] for images in batches])
        for at in (0, 2)
    ]
    assert all(epoch.unique().numel() == 300 for epoch in epochs)
    assert not torch.equal(*epochs)


def test_fresh_batches_do_not_change_the_random_state_of_training(tmp_path: Path) -> None:
    def order(**options: Any) -> list[Tensor]:
        seen: list[Tensor] = []

        class Recording(Classifier):
            def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
                seen.append(batch[0])
                return super().training_step(batch, index)

        torch.manual_seed(0)
        module = Recording(FC((1, 2, 4), depth=3, width=16))
        callback = PruneAtInit(SNIP(), density=0.2, rounds=6, **options)
        trainer(tmp_path, callback, max_epochs=1, enable_checkpointing=False).fit(module, Loaded())
        return seen

    assert all(torch.equal(a, b) for a, b in zip(order(fresh_batches=True), order(), strict=True))


def test_fresh_batches_are_equal_in_each_step_of_the_search_for_an_effective_density(
    tmp_path: Path,
) -> None:
    for data in (Drawn, Loaded):
        options = {"density": None, "effective_density": 0.2, "rounds": 3, "fresh_batches": True}
        seen = scored_on(tmp_path, data(), **options)
        assert len(seen) % 3 == 0
        assert len(seen) > 3
        for at in range(3, len(seen)):
            assert all(torch.equal(a, b) for a, b in zip(seen[at % 3], seen[at], strict=True))


def test_fresh_batches_need_pruning_batches_with_a_parameter_draw(tmp_path: Path) -> None:
    class Once(Classes):
        def pruning_batches(self) -> list[tuple[Tensor, Tensor]]:
            return [(torch.ones(3, 1, 2, 4), torch.arange(3))]

    with pytest.raises(
        ValueError,
        match=r"fresh_batches: pruning_batches\(\) of the data module has no parameter draw",
    ):
        scored_on(tmp_path, Once(), fresh_batches=True)
    assert len(scored_on(tmp_path, Once())) == 5


def test_a_pruner_gets_the_first_training_images_without_a_change_of_the_random_state(
    tmp_path: Path,
) -> None:
    class Many(Classes):
        def train_dataloader(self) -> DataLoader[Any]:
            images = torch.randn(200, 1, 2, 4, generator=torch.Generator().manual_seed(0))
            return DataLoader(
                TensorDataset(images, torch.arange(200) % 10), batch_size=50, shuffle=True
            )

    def losses(*callbacks: Any) -> list[Tensor]:
        seen: list[Tensor] = []

        class Recording(Classifier):
            def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
                seen.append(batch[1])
                return super().training_step(batch, index)

        torch.manual_seed(0)
        module = Recording(FC((1, 2, 4), depth=3, width=16))
        trainer(tmp_path, *callbacks, max_epochs=1, enable_checkpointing=False).fit(module, Many())
        return seen

    pruner = RecordingSNIP()
    pruned, dense = losses(PruneAtInit(pruner, density=0.2)), losses()
    # Three batches are needed for at least 128 images.
    assert [len(labels) for _, labels in pruner.state.batches] == [50] * 3
    assert all(torch.equal(a, b) for a, b in zip(pruned, dense, strict=True))


def test_the_pruner_gets_the_loss_of_the_classifier(tmp_path: Path) -> None:
    masks = []
    for options in ({}, {"loss": nn.MultiMarginLoss()}):
        module = classifier()
        module.loss = nn.MultiMarginLoss()
        callback = PruneAtInit(SNIP(), density=0.2, **options)
        trainer(tmp_path, callback, max_epochs=1, enable_checkpointing=False).fit(module, Classes())
        masks.append(callback.masks)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_the_pruner_gets_the_option_train_mode(tmp_path: Path) -> None:
    pruner = RecordingSNIP()
    callback = PruneAtInit(pruner, density=0.2, train_mode=True)
    trainer(tmp_path, callback, max_epochs=1, enable_checkpointing=False).fit(
        classifier(), Classes()
    )
    assert pruner.state.train_mode


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"loss": nn.CrossEntropyLoss()},
            ValueError,
            r"give batches=, a list of \(images, labels\) pairs; batches\[0\] is no pair",
        ),
        ({}, RuntimeError, r"training_step\(\) of Classifier fails on a batch .* give PruneAtInit"),
    ],
)
def test_batches_that_the_loss_cannot_take_are_refused(
    tmp_path: Path, options: Any, kind: type[Exception], message: str
) -> None:
    class Odd(Classes):
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader([{"images": torch.ones(1, 2, 4)}] * 8, batch_size=4)  # type: ignore[arg-type]

    callback = PruneAtInit(SNIP(), density=0.2, **options)
    with pytest.raises(kind, match=message):
        trainer(tmp_path, callback, enable_checkpointing=False).fit(classifier(), Odd())


@pytest.mark.parametrize("sanity", SANITY)
def test_each_sanity_check_changes_either_masks_or_weights(tmp_path: Path, sanity: Any) -> None:
    dense = {name: parameter.clone() for name, parameter in classifier().network.named_parameters()}
    plain, checked = (
        PruneAtInit(SynFlow(), density=0.5, rounds=3, sanity=x, on_collapse="warn")
        for x in (None, sanity)
    )
    modules = [classifier(), classifier()]
    for module, callback in zip(modules, (plain, checked), strict=True):
        module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
        trainer(tmp_path, callback, max_epochs=1, enable_checkpointing=False).fit(module, Classes())
    assert plain.masks is not None
    assert checked.masks is not None
    assert plain.masks.kept == checked.masks.kept
    same = all(torch.equal(mask, checked.masks[name]) for name, mask in plain.masks.items())
    assert same == (sanity == "reinitialise")
    same_weights = all(
        torch.equal(modules[1].network.get_parameter(name), dense[name] * mask)
        for name, mask in checked.masks.items()
    )
    assert same_weights == (sanity != "reinitialise")


def test_an_unknown_sanity_check_or_one_without_a_pruner_is_refused() -> None:
    with pytest.raises(
        ValueError, match="sanity: 'reverse' must be one of invert, shuffle, reinitialise"
    ):
        PruneAtInit(SynFlow(), density=0.5, sanity="reverse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"sanity: 'shuffle' .* needs a pruner"):
        PruneAtInit(None, sanity="shuffle")


TWO_PROCESSES = """
import torch
from pytorch_lightning import Callback, Trainer
from synflow_pl import PruneAtInit
from synflow_pl.pruners import GraSP, Random, Reinitialised, SynFlow
from tests.training.test_prune_at_init import Classes, classifier

class Check(Callback):
    def setup(self, trainer, module, stage):
        torch.manual_seed(trainer.global_rank)

    def on_train_start(self, trainer, module):
        pruning = next(c for c in trainer.callbacks if isinstance(c, PruneAtInit))
        for tensors in (module.network.parameters(), pruning.masks.values()):
            own = torch.cat([tensor.detach().flatten().float() for tensor in tensors])
            first, second = trainer.strategy.all_gather(own)
            assert torch.equal(first, second), type(pruning.pruner)
        weights = [p for n, p in module.network.named_parameters() if n in pruning.masks]
        assert sum(int(p.count_nonzero()) for p in weights) == 164

for pruner in (Random(), GraSP(), Reinitialised(SynFlow())):
    pruning = PruneAtInit(pruner, density=0.3, rounds=2, on_collapse="warn")
    trainer = Trainer(max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Check(), pruning])
    trainer.fit(classifier(), Classes())
"""


@pytest.mark.slow
def test_two_processes_with_different_seeds_start_from_the_same_masks_and_weights(
    tmp_path: Path,
) -> None:
    run_script(TWO_PROCESSES, tmp_path, limit=300)
