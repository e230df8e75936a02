"""Two processes: one choice, the same masks and weights on both, and an error on one is an error on
both.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from test_data import Few, fit
from test_precision import Small
from test_prune_at_init import OPTIMIZERS, Classes, classifier
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessRaisedException

from synflow_pl import Classifier, Masks, PruneAtInit
from synflow_pl.networks import FC, Conv
from synflow_pl.pruners import (
    SNIP,
    GradualMagnitude,
    Pruner,
    PruningState,
    Random,
    Reinitialised,
    SynFlow,
)
from synflow_pl.pruners.sanity import Shuffled

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET: dict[str, Any] = {
    "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu",
}  # fmt: skip


class Told(Callback):
    """Writes what each rank ends with: its masks and weights, or its error. On another seed in each
    rank.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        torch.manual_seed(trainer.global_rank)  # no two ranks draw the same

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pruning = next(
            callback for callback in trainer.callbacks if isinstance(callback, PruneAtInit)
        )  # type: ignore[attr-defined]
        assert pruning.masks is not None
        held = {
            "masks": dict(pruning.masks),
            "weights": pl_module.state_dict(),
            "diagnosed": pruning.diagnosis is not None,
        }
        torch.save(held, self.folder / f"{trainer.global_rank}.pt")

    def read(self) -> list[dict[str, Any]]:
        return [torch.load(self.folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


class Watched(PruneAtInit):
    """Writes the error that each rank meets when its fit starts."""

    folder: Path

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            super().on_fit_start(trainer, pl_module)
        except Exception as error:
            mine, other = (
                self.folder / f"{rank}.error"
                for rank in (trainer.global_rank, 1 - trainer.global_rank)
            )
            mine.write_text(f"{type(error).__name__}: {error}")
            # The first process that ends has the other ended as well, which shall say first what it
            # met.
            patience = time.monotonic() + 20
            while not other.exists() and time.monotonic() < patience:
                time.sleep(0.05)
            raise


def errors(
    folder: Path, *before: Callback, pruning: Watched, module: Classifier | None = None
) -> list[str]:
    """What two ranks met."""
    pruning.folder = folder
    with pytest.raises(ProcessRaisedException):
        two(folder, *before, pruning, module=module)
    return [(folder / f"{rank}.error").read_text() for rank in range(2)]


def two(
    folder: Path, *callbacks: Callback, module: Classifier | None = None, **options: Any
) -> Told:
    told = Told(folder)
    run = Trainer(
        max_epochs=2,
        devices=2,
        strategy="ddp_fork",
        callbacks=[told, *callbacks],
        **(QUIET | options),
    )
    run.fit(module or classifier(), Classes())
    return told


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


@pytest.mark.parametrize(
    ("pruner", "options"),
    [
        (Random(), {}),
        (Random(), {"at_epoch": 1}),
        (Reinitialised(SynFlow()), {}),
        (Shuffled(SynFlow()), {"rounds": 2}),
        (GradualMagnitude(), {"rounds": 3}),
    ],
    ids=["random", "later", "reinitialised", "shuffled", "gradual"],
)
def test_two_ranks_hold_the_same_whatever_each_would_choose(
    tmp_path: Path, pruner: Pruner, options: Any
) -> None:
    first, second = two(
        tmp_path, PruneAtInit(pruner, density=0.3, on_collapse="warn", **options)
    ).read()
    assert same(first["masks"], second["masks"])
    assert same(first["weights"], second["weights"])
    assert first["diagnosed"]
    assert second["diagnosed"]
    # 544 weights in all, of which ceil(0.3 * 544) are kept.
    assert sum(int(mask.sum()) for mask in first["masks"].values()) == 164
    assert all(
        not first["weights"][f"network.{name}"][~mask].any()
        for name, mask in first["masks"].items()
    )


class Tampering(Callback):
    """Changes something on the second rank alone, before the pruning callback looks."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == 1:
            pruning = next(
                callback for callback in trainer.callbacks if isinstance(callback, PruneAtInit)
            )  # type: ignore[attr-defined]
            assert pruning.masks is not None
            if self.what == "weights":
                list(pl_module.parameters())[-1].data[0] += (
                    2**-20
                )  # a bias, which no mask sets back
            elif self.what == "masks":
                next(iter(pruning.masks.values()))[0, 0] ^= True
            else:
                pruning.masks = None


@pytest.mark.parametrize("what", ["masks", "weights", "nothing"])
def test_a_rank_that_holds_something_else_is_named_on_every_rank(tmp_path: Path, what: str) -> None:
    pruning, module = Watched(SynFlow(), density=0.3), classifier()
    Trainer(max_epochs=1, callbacks=[pruning], **QUIET).fit(module, Classes())
    named = "weights" if what == "weights" else "masks"
    said = errors(tmp_path, Tampering(what), pruning=pruning, module=module)
    assert all(
        error.startswith(f"Disagreement: the {named} of rank 1 are not those of rank 0")
        for error in said
    )


class Broken(Random):
    """It fails where only the first rank gets."""

    def score(self, state: PruningState) -> dict[str, Tensor]:
        raise FloatingPointError("layers.1.weight: a score is nan")


def test_an_error_of_the_first_rank_is_one_of_all(tmp_path: Path) -> None:
    assert (
        errors(tmp_path, pruning=Watched(Broken(), density=0.3))
        == ["FloatingPointError: layers.1.weight: a score is nan"] * 2
    )


def test_a_dead_network_is_an_error_of_all_ranks(tmp_path: Path) -> None:
    said = errors(tmp_path, pruning=Watched(Random(), num_kept=1))
    assert all(error.startswith("DeadNetwork: the network is dead") for error in said)


class Unsendable(Random):
    def score(self, state: PruningState) -> dict[str, Tensor]:
        class Local(Exception):
            """Of a class that no other process can find."""

        raise Local("no score")


def test_an_error_that_cannot_be_sent_is_told_by_name(tmp_path: Path) -> None:
    assert errors(tmp_path, pruning=Watched(Unsendable(), density=0.3)) == [
        "Local: no score",
        "RuntimeError: rank 0: Local: no score",
    ]


def test_masks_of_a_file_that_differs_from_node_to_node_are_those_of_the_first(
    tmp_path: Path,
) -> None:
    network = FC((1, 2, 4), depth=3, width=16)
    one, other = (
        Masks(
            {n: (torch.rand(p.shape) < 0.5) for n, p in network.named_parameters() if p.dim() > 1}
        )
        for _ in range(2)
    )
    pruning = PruneAtInit(None, masks=None)
    pruning._from_file = one

    class Elsewhere(Callback):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            if trainer.global_rank == 1:
                pruning._from_file = other

    first, second = two(tmp_path, Elsewhere(), pruning).read()
    assert same(first["masks"], second["masks"])
    assert same(first["masks"], dict(one))


def test_two_ranks_choose_the_masks_of_one_in_half_precision_and_another_memory_format(
    tmp_path: Path,
) -> None:
    found = []
    for name, options in (
        ("two", {"devices": 2, "strategy": "ddp_fork", "precision": "bf16-true"}),
        ("one", {"devices": 1}),
    ):
        torch.manual_seed(0)
        folder = tmp_path / name
        folder.mkdir()
        module = Classifier(
            Conv((1, 12, 12), width=8), optimizer=OPTIMIZERS["SGD"], channels_last=name == "two"
        )
        run = Trainer(
            max_epochs=1,
            callbacks=[told := Told(folder), PruneAtInit(SNIP(), density=0.3)],
            **QUIET,
            **options,
        )  # type: ignore[arg-type]
        run.fit(module, Small(1, 12, 12))
        found.append(
            [torch.load(path, weights_only=True) for path in sorted(told.folder.iterdir())]
        )
    (first, second), (alone,) = found
    assert same(first["weights"], second["weights"])
    assert same(first["masks"], alone["masks"])


class Losses(Callback):
    """Writes the loss of each step on each rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        with (self.folder / f"losses-{trainer.global_rank}").open("a") as file:
            file.write(f"{float(outputs['loss'])!r}\n")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        with (self.folder / f"metrics-{trainer.global_rank}").open("a") as file:
            file.write(f"{metrics['val/loss']!r} {metrics['val/accuracy']!r}\n")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        means = [
            repr(float(trainer.callback_metrics[f"train/{name}"])) for name in ("loss", "accuracy")
        ]
        (self.folder / f"epoch-{trainer.global_rank}").write_text(" ".join(means))


def numbers(path: Path) -> Tensor:
    return torch.tensor(
        [[float(word) for word in line.split()] for line in path.read_text().splitlines()]
    )


def test_two_processes_train_a_pruned_network_as_one_does(tmp_path: Path) -> None:
    held = {}
    for ranks in (2, 1):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        callbacks = [PruneAtInit(SynFlow(), density=0.2, rounds=5), Losses(folder)]
        options: Any = {"devices": 2, "strategy": "ddp_fork"} if ranks == 2 else {"devices": 1}
        # 59 images: the last batch has three, two for one rank and one for the other; 31 to
        # validate on, in eight batches.
        data = Few(val_size=5000 - 59)
        _, module = fit(
            folder,
            data,
            *callbacks,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            max_epochs=3,
            limit_val_batches=8,
            **options,
        )
        held[ranks] = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    # Their losses count by their images, so that their plain mean is the mean over the batch.
    shared = (numbers(tmp_path / "2/losses-0") + numbers(tmp_path / "2/losses-1")) / 2
    torch.testing.assert_close(shared, numbers(tmp_path / "1/losses-0"), rtol=1e-4, atol=1e-5)
    for rank in range(2):  # metrics are those of all images, on every rank
        torch.testing.assert_close(
            numbers(tmp_path / f"2/metrics-{rank}"),
            numbers(tmp_path / "1/metrics-0"),
            rtol=1e-4,
            atol=1e-5,
        )
        torch.testing.assert_close(
            numbers(tmp_path / f"2/epoch-{rank}"),
            numbers(tmp_path / "1/epoch-0"),
            rtol=1e-4,
            atol=1e-5,
        )
    zeros = [
        {name: tensor == 0 for name, tensor in state.items() if name.endswith("weight")}
        for state in held.values()
    ]
    assert same(*zeros)
    for name in held[1]:
        torch.testing.assert_close(held[2][name], held[1][name], rtol=1e-3, atol=1e-5)


class Odd(Few):
    """Digits of which 33 are held out and 33 are the test set."""

    def images(self, train: bool) -> tuple[Tensor, Tensor]:
        images, labels = super().images(train)
        return (images, labels) if train else (images[:33], labels[:33])


@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.parametrize("batch_size", [34, 10, 4])
def test_two_processes_evaluate_images_that_they_cannot_divide_as_one_does(
    stage: str, batch_size: int
) -> None:
    torch.manual_seed(0)
    module = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    data = Odd(val_size=33, batch_size=batch_size)
    found = []
    for options in ({"devices": 2, "strategy": "ddp_fork"}, {"devices": 1}):
        run = Trainer(**QUIET, **options)  # type: ignore[arg-type]
        found.append(getattr(run, stage)(module, datamodule=data, verbose=False)[0])
    assert found[0].keys() == found[1].keys()
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    if stage == "validate":
        images, labels = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
        assert len(labels) == 33
        by_hand = nn.functional.cross_entropy(module(images), labels).item()
        assert found[0]["val/loss"] == pytest.approx(by_hand, rel=1e-5)
