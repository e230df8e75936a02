"""Networks are pruned after some epochs, gradually, or by the trained weights of another run."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from test_prune_at_init import OPTIMIZERS, Classes, classifier, trainer
from torch import Tensor

from synflow_pl import Classifier, Masks, PruneAtInit, load_weights
from synflow_pl.networks import FC
from synflow_pl.pruners import SNIP, GradualMagnitude, Magnitude, Random, SynFlow
from synflow_pl.training.checkpoints import KEY, load_masks

# FC((1, 2, 4), depth=3, width=16) has 8 * 16 + 16 * 16 + 16 * 10 = 544 weights; an epoch of Classes
# has eight batches.
TOTAL = 544


class CountKept(Callback):
    """Record the number of kept weights after each batch."""

    def __init__(self) -> None:
        self.kept: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Classifier, *_: Any) -> None:
        self.kept.append(
            sum(int(p.count_nonzero()) for p in pl_module.network.parameters() if p.dim() > 1)
        )


def fit(
    folder: Path,
    *callbacks: Any,
    optimizer: str = "SGD",
    ckpt_path: Path | None = None,
    **options: Any,
) -> tuple[Any, list[int]]:
    """Train with a checkpoint of each epoch in ``folder``; return the kept weights by batch."""
    counts, module = CountKept(), Classifier(classifier().network, optimizer=OPTIMIZERS[optimizer])
    saving = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
    trainer(folder, *callbacks, counts, saving, **options).fit(
        module, Classes(), ckpt_path=ckpt_path
    )
    return module, counts.kept


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "extra",
    [{}, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}],
    ids=["plain", "accumulated"],
)
def test_a_network_is_dense_until_the_epoch_and_exactly_sparse_from_then_on(
    tmp_path: Path, optimizer: str, extra: Any
) -> None:
    callback = PruneAtInit(Magnitude(), density=0.25, at_epoch=1)
    _, kept = fit(tmp_path, callback, optimizer=optimizer, max_epochs=3, **extra)
    # Optimiser states of the dense epoch do not make pruned weights nonzero.
    assert kept == [TOTAL] * 8 + [TOTAL // 4] * 16
    assert callback.diagnosis is not None
    assert callback.diagnosis.kept == TOTAL // 4


def test_the_weights_at_the_epoch_of_the_pruning_are_scored(tmp_path: Path) -> None:
    dense, _ = fit(tmp_path / "dense", max_epochs=1)
    callback = PruneAtInit(Magnitude(), density=0.25, at_epoch=1)
    fit(tmp_path / "sparse", callback, max_epochs=2)
    assert callback.masks is not None
    magnitudes = torch.cat(
        [dense.network.get_parameter(name).detach().abs().flatten() for name in callback.masks]
    )
    kept = torch.cat([mask.flatten() for mask in callback.masks.values()])
    assert magnitudes[kept].min() >= magnitudes[~kept].max()


def test_a_training_resumed_before_the_epoch_of_the_pruning_is_pruned_at_it(tmp_path: Path) -> None:
    whole, _ = fit(tmp_path / "whole", PruneAtInit(SNIP(), density=0.25, at_epoch=2), max_epochs=4)
    for epoch in (0, 1, 2):
        path = tmp_path / f"whole/epoch={epoch}.ckpt"
        assert ("masks" in torch.load(path, weights_only=True)[KEY]) == (epoch == 2)
        callback = PruneAtInit(SNIP(), density=0.25, at_epoch=2)
        again, kept = fit(tmp_path / f"again{epoch}", callback, max_epochs=4, ckpt_path=path)
        assert kept == ([TOTAL] * 8 * (1 - epoch) if epoch < 2 else []) + [TOTAL // 4] * 8 * min(
            2, 3 - epoch
        )
        assert all(
            torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
        )


def test_a_checkpoint_without_masks_from_after_at_epoch_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, PruneAtInit(None), max_epochs=2)
    saving = ModelCheckpoint(dirpath=tmp_path, filename="mid", every_n_train_steps=12)
    trainer(tmp_path, PruneAtInit(None), saving).fit(classifier(), Classes())
    for name, at_epoch in (("epoch=1", 1), ("mid", 1)):
        with pytest.raises(
            ValueError, match="was trained without masks and would be pruned in mid-training"
        ):
            fit(
                tmp_path,
                PruneAtInit(Magnitude(), density=0.25, at_epoch=at_epoch),
                max_epochs=4,
                ckpt_path=tmp_path / f"{name}.ckpt",
            )


def test_an_epoch_that_is_never_reached_is_an_error_or_a_warning(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="at_epoch: 2 is not before the end of training at max_epochs=2"
    ):
        fit(tmp_path, PruneAtInit(Magnitude(), density=0.25, at_epoch=2), max_epochs=2)
    with pytest.raises(ValueError, match="at_epoch: -1 must be a whole number of epochs"):
        PruneAtInit(Magnitude(), density=0.25, at_epoch=-1)
    with pytest.warns(UserWarning, match="training ended before epoch 2, so nothing was pruned"):
        fit(tmp_path, PruneAtInit(Magnitude(), density=0.25, at_epoch=2), max_epochs=3, max_steps=4)


@pytest.mark.parametrize("at_epoch", [0, 1])
def test_an_average_that_started_before_the_pruning_has_the_same_zeros(
    tmp_path: Path, at_epoch: int
) -> None:
    callback, average = (
        PruneAtInit(Magnitude(), density=0.25, at_epoch=at_epoch),
        EMAWeightAveraging(decay=0.9),
    )
    module, _ = fit(tmp_path, average, callback, max_epochs=2)
    masks = callback.masks
    assert masks is not None
    # At the end of training, module and checkpoint have the averaged weights.
    for network in (
        module.network,
        load_weights(FC((1, 2, 4), depth=3, width=16), tmp_path / "epoch=1.ckpt"),
    ):
        assert all(not network.get_parameter(name)[~mask].any() for name, mask in masks.items())


# -- gradually


def after(step: int, last: int, rounds: int, density: float) -> int:
    """Return the number of kept weights after a step by Zhu & Gupta 2017, Equation 1."""
    done = min(step, last) * rounds // last
    then = density + (1 - density) * (1 - done / rounds) ** 3
    return TOTAL - math.floor((1 - then) * TOTAL + 1e-9)


@pytest.mark.parametrize(("rounds", "end_fraction"), [(4, 0.5), (4, 1.0), (100, 0.25), (7, 0.5)])
def test_gradual_pruning_follows_the_cubic_schedule_step_by_step(
    tmp_path: Path, rounds: int, end_fraction: float
) -> None:
    callback = PruneAtInit(GradualMagnitude(end_fraction=end_fraction), density=0.1, rounds=rounds)
    _, kept = fit(tmp_path, callback, max_epochs=2)
    assert kept == [after(step, math.ceil(16 * end_fraction), rounds, 0.1) for step in range(1, 17)]
    assert kept[-1] == -(-TOTAL // 10)
    assert callback.diagnosis is not None
    assert callback.diagnosis.kept == kept[-1]


def test_pruned_weights_stay_pruned_in_later_rounds(tmp_path: Path) -> None:
    fit(
        tmp_path,
        PruneAtInit(GradualMagnitude(end_fraction=1.0), density=0.1, rounds=30),
        optimizer="Adam",
        max_epochs=4,
    )
    masks = [load_masks(tmp_path / f"epoch={epoch}.ckpt") for epoch in range(4)]
    for earlier, later in pairwise(masks):
        assert earlier is not None
        assert later is not None
        assert later.kept < earlier.kept
        assert all(not (later[name] & ~earlier[name]).any() for name in later)


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_gradual_pruning_resumes_from_a_checkpoint(tmp_path: Path, epoch: int) -> None:
    def gradual() -> PruneAtInit:
        return PruneAtInit(GradualMagnitude(end_fraction=0.75), density=0.1, rounds=20)

    whole, kept = fit(tmp_path / "whole", gradual(), max_epochs=4)
    again, rest = fit(
        tmp_path / "again",
        gradual(),
        max_epochs=4,
        ckpt_path=tmp_path / f"whole/epoch={epoch}.ckpt",
    )
    assert rest == kept[8 * (epoch + 1) :]
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )


def test_gradual_pruning_begins_at_at_epoch_and_counts_optimiser_steps(
    tmp_path: Path,
) -> None:
    # A step accumulates two batches, so there are 16 steps in four epochs. The four rounds lie
    # between steps 4 and 8.
    callback = PruneAtInit(GradualMagnitude(end_fraction=0.5), density=0.1, rounds=4, at_epoch=1)
    _, kept = fit(tmp_path, callback, max_epochs=4, accumulate_grad_batches=2)
    at_steps = [kept[index] for index in range(1, 32, 2)]
    assert at_steps == [TOTAL] * 4 + [after(step, 4, 4, 0.1) for step in range(1, 13)]


class Stop(Callback):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = True


def test_options_that_exclude_gradual_pruning_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"end_fraction: 0 must be a fraction of the training, in \(0, 1\]"
    ):
        GradualMagnitude(end_fraction=0)
    with pytest.raises(ValueError, match="sanity: 'shuffle' checks a pruning that happens at once"):
        PruneAtInit(GradualMagnitude(), density=0.1, sanity="shuffle")
    with pytest.raises(
        ValueError, match="gradual pruning takes a part of the training, so that must have an end"
    ):
        fit(tmp_path, PruneAtInit(GradualMagnitude(), density=0.1), max_epochs=-1)
    with pytest.warns(UserWarning, match="training ended after round 2 of 4, at density"):
        fit(
            tmp_path,
            PruneAtInit(GradualMagnitude(end_fraction=1.0), density=0.1, rounds=4),
            Stop(),
            max_epochs=2,
        )
    with pytest.raises(
        ValueError, match="at_epoch: 3 lies after the end of the gradual pruning, step 16 of 32"
    ):
        fit(
            tmp_path,
            PruneAtInit(GradualMagnitude(end_fraction=0.5), density=0.1, at_epoch=3),
            max_epochs=4,
        )


# -- by the trained weights of another run


def largest(network: Any, among: Masks | None, names: list[str], kept: int) -> dict[str, Tensor]:
    """Return masks of the largest weights, computed by sorting all of them."""
    magnitudes = [
        network.get_parameter(name).detach().abs() * (1 if among is None else among[name])
        for name in names
    ]
    threshold = torch.cat([m.flatten() for m in magnitudes]).sort(descending=True).values[kept - 1]
    return {name: m >= threshold for name, m in zip(names, magnitudes, strict=True)}


def test_score_from_scores_trained_weights_and_rewinds_kept_weights(tmp_path: Path) -> None:
    first = PruneAtInit(Magnitude(), density=0.5)
    trained, _ = fit(tmp_path / "first", first, max_epochs=1)
    assert first.masks is not None
    second = PruneAtInit(Magnitude(), density=0.25, score_from=tmp_path / "first/epoch=0.ckpt")
    start: dict[str, Tensor] = {}

    class RecordStart(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            start.update(
                {name: p.detach().clone() for name, p in pl_module.network.named_parameters()}
            )

    fit(tmp_path / "second", second, RecordStart(), max_epochs=1)
    fresh = dict(classifier().network.named_parameters())
    assert second.masks is not None
    expected = largest(trained.network, first.masks, list(second.masks), TOTAL // 4)
    for name, mask in second.masks.items():
        assert torch.equal(mask, expected[name])
        assert not (mask & ~first.masks[name]).any()
        assert torch.equal(start[name], torch.where(mask, fresh[name], 0))


def test_score_from_is_refused_with_pruning_at_another_time(tmp_path: Path) -> None:
    fit(tmp_path, max_epochs=1)
    path = tmp_path / "epoch=0.ckpt"
    for options in (
        {"at_epoch": 1},
        {"pruner": None, "density": None},
        {"pruner": GradualMagnitude()},
    ):
        with pytest.raises(ValueError, match="score_from scores the weights of another run"):
            PruneAtInit(**{"pruner": SynFlow(), "density": 0.5, "score_from": path, **options})  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        PruneAtInit(Random(), density=0.5, score_from=tmp_path / "nowhere.ckpt")


# -- manual optimisation with several optimisers


class ByHand(Classifier):
    """Step each optimiser a given number of times in every batch, or in some batches only."""

    def __init__(self, steps: list[int], every: int = 1) -> None:
        super().__init__(classifier().network)
        self.automatic_optimization, self.steps, self.every = False, steps, every

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:  # type: ignore[override]
        optimizers: Any = self.optimizers()
        for optimizer, steps in zip(
            optimizers if isinstance(optimizers, list) else [optimizers], self.steps, strict=True
        ):
            for _ in range(steps if index % self.every == 0 else 0):
                optimizer.zero_grad()
                self.manual_backward(self.loss(self(batch[0]), batch[1]))
                optimizer.step()

    def configure_optimizers(self) -> Any:
        layers = [layer for layer in self.network.modules() if isinstance(layer, torch.nn.Linear)]
        return [torch.optim.SGD(layer.parameters(), lr=0.01) for layer in layers[: len(self.steps)]]


def by_hand(folder: Path, module: ByHand, path: Path | None = None, **options: Any) -> list[int]:
    counts, callback = (
        CountKept(),
        PruneAtInit(
            GradualMagnitude(end_fraction=0.5), density=0.1, rounds=4, **options.pop("pruning", {})
        ),
    )
    saving = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
    trainer(folder, callback, counts, saving, **options).fit(module, Classes(), ckpt_path=path)
    return counts.kept


@pytest.mark.parametrize("steps", [[1], [1, 1], [1, 1, 1], [5, 1], [3]], ids=str)
def test_gradual_pruning_under_manual_optimisation_counts_batches(
    tmp_path: Path, steps: list[int]
) -> None:
    kept = by_hand(tmp_path, ByHand(steps), max_epochs=4)
    assert kept == [after(batch, 16, 4, 0.1) for batch in range(1, 33)]
    rest = by_hand(tmp_path / "again", ByHand(steps), tmp_path / "epoch=0.ckpt", max_epochs=4)
    assert rest == kept[8:]


def test_gradual_pruning_counts_batches_if_only_some_have_an_optimiser_step(tmp_path: Path) -> None:
    kept = by_hand(tmp_path, ByHand([1, 1], every=4), max_epochs=4)
    assert kept == [after(batch, 16, 4, 0.1) for batch in range(1, 33)]


def test_gradual_pruning_under_manual_optimisation_begins_at_at_epoch(tmp_path: Path) -> None:
    kept = by_hand(tmp_path, ByHand([1, 1]), max_epochs=4, pruning={"at_epoch": 1})
    assert kept == [TOTAL] * 8 + [after(batch, 8, 4, 0.1) for batch in range(1, 25)]
    with pytest.raises(
        ValueError, match="at_epoch: 3 lies after the end of the gradual pruning, step 16 of 32"
    ):
        by_hand(tmp_path, ByHand([1, 1]), max_epochs=4, pruning={"at_epoch": 3})


@pytest.mark.parametrize(
    "limit",
    [{"max_epochs": -1}, {"max_epochs": 100}],
    ids=["without epochs", "before the last epoch"],
)
def test_gradual_pruning_under_manual_optimisation_ends_within_max_steps(
    tmp_path: Path, limit: Any
) -> None:
    # 32 steps of two optimisers are 16 batches; the pruning takes half of them.
    kept = by_hand(tmp_path, ByHand([1, 1]), max_steps=32, **limit)
    assert len(kept) == 16
    assert kept == [after(batch, 8, 4, 0.1) for batch in range(1, 17)]
