"""The state of PruneAtInit belongs to one network and one fit."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule
from pytorch_lightning.callbacks import ModelCheckpoint
from test_prune_at_init import OPTIMIZERS, Classes, classifier, trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from synflow_pl import Classifier, Masks, PruneAtInit, prune
from synflow_pl.diagnosis import DeadNetwork
from synflow_pl.networks import FC
from synflow_pl.pruners import SNIP, GradualMagnitude, Magnitude, Random, SynFlow


def seeded(seed: int, width: int = 16) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(FC((1, 2, 4), depth=3, width=width), optimizer=OPTIMIZERS["SGD"])


def fit(
    folder: Path,
    callback: PruneAtInit,
    module: Any,
    *others: Callback,
    data: Any = None,
    **options: Any,
) -> None:
    run = {
        "max_epochs": 1,
        "enable_checkpointing": any(isinstance(other, ModelCheckpoint) for other in others),
    }
    path = options.pop("ckpt_path", None)
    trainer(folder, callback, *others, **(run | options)).fit(
        module, data or Classes(), ckpt_path=path
    )


def same(some: Masks | None, others: Masks | None) -> bool:
    assert some is not None
    assert others is not None
    return some.keys() == others.keys() and all(
        torch.equal(some[name], others[name]) for name in some
    )


def held(module: Classifier, masks: Masks) -> bool:
    return not any(
        bool(parameter[~mask].any()) for parameter, mask in masks.parameters(module.network)
    )


def test_one_callback_gives_each_network_of_a_loop_its_own_masks(tmp_path: Path) -> None:
    callback, seen = PruneAtInit(SynFlow(), density=0.2, rounds=3), []
    for seed, width in ((0, 16), (1, 16), (2, 24)):
        module = seeded(seed, width)
        expected = prune(
            copy.deepcopy(module.network), SynFlow(), density=0.2, rounds=3, input_shape=(1, 2, 4)
        )
        fit(tmp_path, callback, module)
        assert same(callback.masks, expected)
        assert held(module, expected)
        assert callback.diagnosis is not None
        assert callback.diagnosis.total == expected.total
        assert callback.survival is not None
        seen.append((callback.diagnosis, callback.survival))
    assert len({id(part) for parts in seen for part in parts}) == 6


def test_a_copy_of_a_network_is_pruned_as_another_network(tmp_path: Path) -> None:
    callback, base = PruneAtInit(Random(), density=0.5), seeded(0)
    twin = copy.deepcopy(base)
    fit(tmp_path, callback, base)
    first = callback.masks
    torch.manual_seed(99)
    fit(tmp_path, callback, twin)
    assert not same(first, callback.masks)
    assert callback.masks is not None
    assert held(twin, callback.masks)


def test_folds_of_a_cross_validation_are_scored_on_their_own_images(tmp_path: Path) -> None:
    class Fold(Classes):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.seed = seed

        def train_dataloader(self) -> DataLoader[Any]:
            images = torch.randn(64, 1, 2, 4, generator=torch.Generator().manual_seed(self.seed))
            return DataLoader(TensorDataset(images, torch.arange(64) % 10), batch_size=64)

    reused, base = PruneAtInit(SNIP(), density=0.2), seeded(0)
    for fold in range(2):
        alone = PruneAtInit(SNIP(), density=0.2)
        fit(tmp_path, alone, copy.deepcopy(base), data=Fold(fold))
        fit(tmp_path, reused, copy.deepcopy(base), data=Fold(fold))
        assert same(reused.masks, alone.masks)


@pytest.mark.parametrize(
    "pruner", [Magnitude(), GradualMagnitude(end_fraction=0.5)], ids=["at once", "gradually"]
)
def test_a_network_keeps_its_masks_and_diagnosis_in_another_fit(
    tmp_path: Path, pruner: Any
) -> None:
    callback, module = PruneAtInit(pruner, density=0.25, rounds=4), seeded(0)
    fit(tmp_path, callback, module)
    masks, report = callback.masks, callback.diagnosis
    fit(tmp_path, callback, module)
    assert callback.masks is masks
    assert callback.diagnosis is report
    # The masks belong to the network, also in another classifier.
    fit(tmp_path, callback, Classifier(module.network, optimizer=OPTIMIZERS["SGD"]))
    assert callback.masks is masks


def test_gradual_pruning_starts_again_on_another_network(tmp_path: Path) -> None:
    callback = PruneAtInit(GradualMagnitude(end_fraction=1.0), density=0.25, rounds=4)
    for seed in range(2):
        fit(tmp_path, callback, module := seeded(seed))
        assert callback.masks is not None
        assert callback.masks.density == 0.25
        assert held(module, callback.masks)


def test_an_incomplete_gradual_pruning_is_completed_by_the_next_fit(
    tmp_path: Path,
) -> None:
    callback, module = (
        PruneAtInit(GradualMagnitude(end_fraction=1.0), density=0.25, rounds=8, at_epoch=1),
        seeded(0),
    )

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 11

    with pytest.warns(UserWarning, match="training ended after round 3 of 8"):
        fit(tmp_path, callback, module, Stop(), max_epochs=2)
    assert callback.masks is not None
    first = callback.masks
    fit(tmp_path, callback, module, max_epochs=2)
    assert callback.masks.density == 0.25
    assert not any(bool((callback.masks[name] & ~first[name]).any()) for name in first)


def test_the_example_input_comes_from_the_data_of_the_current_fit(tmp_path: Path) -> None:
    class Wide(LightningDataModule):
        input_shape = (1, 2, 8)

        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(
                TensorDataset(torch.randn(32, 1, 2, 8), torch.arange(32) % 10), batch_size=8
            )

    callback = PruneAtInit(SynFlow(), density=0.2, rounds=2)
    fit(tmp_path, callback, seeded(0))
    fit(tmp_path, callback, Classifier(FC((1, 2, 8), depth=3, width=16)), data=Wide())
    assert callback.masks is not None
    assert callback.masks["layers.1.weight"].shape == (16, 16)


def test_a_dead_network_is_refused_at_every_attempt(tmp_path: Path) -> None:
    callback, module = PruneAtInit(Magnitude(), num_kept=1), seeded(0)
    dense = copy.deepcopy(module.network.state_dict())
    for _ in range(2):
        with pytest.raises(DeadNetwork):
            fit(tmp_path, callback, module)
        assert callback.masks is None
        assert all(
            torch.equal(dense[name], tensor) for name, tensor in module.network.state_dict().items()
        )
    other = PruneAtInit(Magnitude(), density=0.5)
    fit(tmp_path, other, module)  # the network is unchanged, so another density may be tried
    assert other.diagnosis is not None
    assert other.diagnosis.alive
    with pytest.raises(DeadNetwork):
        fit(tmp_path, callback, seeded(1))


def test_a_gradually_disconnected_network_is_refused_at_every_attempt(tmp_path: Path) -> None:
    callback, module = (
        PruneAtInit(GradualMagnitude(end_fraction=0.5), num_kept=1, rounds=2),
        seeded(0),
    )
    for _ in range(2):
        with pytest.raises(DeadNetwork):
            fit(tmp_path, callback, module)
        assert callback.masks is None


class Broken(SynFlow):
    """Pruner that fails once, in its second round."""

    fails = True

    def score(self, state: Any) -> Any:
        if self.fails and state.density < 0.3:
            self.fails = False
            raise KeyboardInterrupt
        return super().score(state)


def test_an_interrupted_pruning_is_repeated_by_the_next_fit(tmp_path: Path) -> None:
    callback, module = PruneAtInit(Broken(), density=0.1, rounds=2), seeded(0)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, callback, module)
    assert callback.masks is None
    fit(tmp_path, callback, module)
    assert callback.masks is not None
    assert callback.masks.kept == -(-callback.masks.total // 10)


class Fails(Callback):
    """Raise an error in a training batch."""

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 3:
            raise RuntimeError("out of memory")


def test_after_a_failed_fit_the_network_keeps_its_masks_and_another_is_pruned(
    tmp_path: Path,
) -> None:
    callback, module = PruneAtInit(SynFlow(), density=0.2), seeded(0)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(tmp_path, callback, module, Fails())
    masks = callback.masks
    assert masks is not None
    assert not callback._hooks.holds  # the optimiser of the failed fit is released
    assert not module.network._state_dict_pre_hooks
    fit(tmp_path, callback, module)
    assert callback.masks is masks
    assert held(module, masks)
    fit(tmp_path, callback, seeded(1))
    assert not same(callback.masks, masks)


def test_the_masks_of_a_checkpoint_replace_those_of_the_callback(tmp_path: Path) -> None:
    first = PruneAtInit(SynFlow(), density=0.2)
    fit(tmp_path, first, seeded(0), ModelCheckpoint(dirpath=tmp_path, filename="sparse"))
    fit(tmp_path, PruneAtInit(None), seeded(0), ModelCheckpoint(dirpath=tmp_path, filename="dense"))
    callback, module = PruneAtInit(SynFlow(), density=0.5), seeded(1)
    fit(tmp_path, callback, module)
    fit(tmp_path, callback, module, max_epochs=2, ckpt_path=tmp_path / "sparse.ckpt")
    assert same(callback.masks, first.masks)
    assert callback.diagnosis is None  # the earlier diagnosis was of other masks
    with pytest.raises(ValueError, match="was trained without masks"):
        fit(tmp_path, callback, module, max_epochs=2, ckpt_path=tmp_path / "dense.ckpt")
    fit(tmp_path, callback, again := seeded(2))
    assert not same(callback.masks, first.masks)
    assert callback.masks is not None
    assert held(again, callback.masks)


def test_testing_another_checkpoint_does_not_change_the_masks_of_a_network(
    tmp_path: Path,
) -> None:
    class Tested(Classes):
        def test_dataloader(self) -> DataLoader[Any]:
            return self.train_dataloader()

    fit(
        tmp_path,
        PruneAtInit(SynFlow(), density=0.1),
        seeded(5),
        ModelCheckpoint(dirpath=tmp_path, filename="other"),
    )
    callback, module = PruneAtInit(SynFlow(), density=0.5), seeded(0)
    fit(tmp_path, callback, module)
    trainer(tmp_path, callback, enable_checkpointing=False).test(
        seeded(6), Tested(), ckpt_path=tmp_path / "other.ckpt"
    )
    fit(tmp_path, callback, module)
    assert callback.masks is not None
    assert callback.masks.density == 0.5


def test_a_pickled_callback_keeps_the_network_of_its_masks(tmp_path: Path) -> None:
    callback, network = PruneAtInit(SynFlow(), density=0.2), seeded(0).network
    fit(tmp_path, callback, Classifier(network, optimizer=partial(torch.optim.SGD, lr=0.1)))
    again, twin = pickle.loads(pickle.dumps((callback, network)))
    fit(tmp_path, again, Classifier(twin))
    assert same(again.masks, callback.masks)
    fit(tmp_path, again, seeded(3))
    assert not same(again.masks, callback.masks)


def test_a_callback_that_is_copied_during_a_fit_keeps_its_masks_in_the_next_fit(
    tmp_path: Path,
) -> None:
    callback, copies = PruneAtInit(SynFlow(), density=0.2), []

    class Copying(Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 1:
                copies.append(copy.deepcopy((callback, pl_module.network)))

    fit(tmp_path, callback, seeded(0), Copying())
    [(again, network)] = copies
    fit(tmp_path, again, module := Classifier(network, optimizer=OPTIMIZERS["SGD"]))
    assert same(again.masks, callback.masks)
    assert held(module, again.masks)


def test_masks_from_a_file_are_applied_to_each_network(tmp_path: Path) -> None:
    first = PruneAtInit(Random(), density=0.3)
    fit(tmp_path, first, classifier())
    assert first.masks is not None
    first.masks.save(tmp_path / "masks.safetensors")
    callback = PruneAtInit(None, masks_path=tmp_path / "masks.safetensors")
    for seed in range(2):
        fit(tmp_path, callback, module := seeded(seed))
        assert same(callback.masks, first.masks)
        assert held(module, first.masks)


def test_a_network_built_in_setup_is_pruned_in_each_fit(
    tmp_path: Path,
) -> None:
    class Late(Classifier):
        def setup(self, stage: str) -> None:
            torch.manual_seed(self.seed)
            self.network = FC((1, 2, 4), depth=3, width=16)
            super().setup(stage)

        seed = 0

    callback, module = PruneAtInit(SynFlow(), density=0.2), Late(FC((1, 2, 4), depth=3, width=16))
    masks: list[dict[str, Tensor]] = []
    for module.seed in (0, 1):
        fit(tmp_path, callback, module)
        assert callback.masks is not None
        assert held(module, callback.masks)
        masks.append(dict(callback.masks))
    assert not all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
