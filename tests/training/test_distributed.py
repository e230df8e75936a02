"""Two processes have equal masks and weights, and an error on rank 0 is raised on both."""

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
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}


class ResultWriter(Callback):
    """Set another seed on each rank, and write its final masks and weights to a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        torch.manual_seed(trainer.global_rank)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
        pruning = next(callback for callback in callbacks if isinstance(callback, PruneAtInit))
        assert pruning.masks is not None
        results = {
            "masks": dict(pruning.masks),
            "weights": pl_module.state_dict(),
            "diagnosed": pruning.diagnosis is not None,
        }
        torch.save(results, self.folder / f"{trainer.global_rank}.pt")

    def read(self) -> list[dict[str, Any]]:
        return [torch.load(self.folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


class ErrorWriter(PruneAtInit):
    """Write the error that each rank raises when its fit starts to a file."""

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
            # The first process that ends also ends the other, which must write its error before.
            deadline = time.monotonic() + 20
            while not other.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            raise


def errors(
    folder: Path, *before: Callback, pruning: ErrorWriter, module: Classifier | None = None
) -> list[str]:
    """Return the errors of two ranks."""
    pruning.folder = folder
    with pytest.raises(ProcessRaisedException):
        two(folder, *before, pruning, module=module)
    return [(folder / f"{rank}.error").read_text() for rank in range(2)]


def two(
    folder: Path, *callbacks: Callback, module: Classifier | None = None, **options: Any
) -> ResultWriter:
    writer = ResultWriter(folder)
    run = Trainer(
        max_epochs=2,
        devices=2,
        strategy="ddp_fork",
        callbacks=[writer, *callbacks],
        **(QUIET | options),
    )
    run.fit(module or classifier(), Classes())
    return writer


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
def test_two_ranks_with_different_seeds_have_the_same_masks_and_weights(
    tmp_path: Path, pruner: Pruner, options: Any
) -> None:
    first, second = two(
        tmp_path, PruneAtInit(pruner, density=0.3, on_collapse="warn", **options)
    ).read()
    assert same(first["masks"], second["masks"])
    assert same(first["weights"], second["weights"])
    assert first["diagnosed"]
    assert second["diagnosed"]
    # ceil(0.3 * 544) of 544 weights are kept.
    assert sum(int(mask.sum()) for mask in first["masks"].values()) == 164
    assert all(
        not first["weights"][f"network.{name}"][~mask].any()
        for name, mask in first["masks"].items()
    )


class Tampering(Callback):
    """Change masks or weights on rank 1 before the pruning callback compares them."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == 1:
            callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
            pruning = next(callback for callback in callbacks if isinstance(callback, PruneAtInit))
            assert pruning.masks is not None
            if self.what == "weights":
                # The last parameter is a bias, which no mask sets to zero.
                list(pl_module.parameters())[-1].data[0] += 2**-20
            elif self.what == "masks":
                next(iter(pruning.masks.values()))[0, 0] ^= True
            else:
                pruning.masks = None


@pytest.mark.parametrize("what", ["masks", "weights", "nothing"])
def test_a_rank_with_other_masks_or_weights_is_named_in_the_error_of_every_rank(
    tmp_path: Path, what: str
) -> None:
    pruning, module = ErrorWriter(SynFlow(), density=0.3), classifier()
    Trainer(max_epochs=1, callbacks=[pruning], **QUIET).fit(module, Classes())
    named = "weights" if what == "weights" else "masks"
    messages = errors(tmp_path, Tampering(what), pruning=pruning, module=module)
    assert all(
        error.startswith(f"Disagreement: the {named} of rank 1 are not those of rank 0")
        for error in messages
    )


class Broken(Random):
    """Pruner that fails in ``score``, which only rank 0 calls."""

    def score(self, state: PruningState) -> dict[str, Tensor]:
        raise FloatingPointError("layers.1.weight: a score is nan")


def test_an_error_on_rank_zero_is_raised_on_every_rank(tmp_path: Path) -> None:
    assert (
        errors(tmp_path, pruning=ErrorWriter(Broken(), density=0.3))
        == ["FloatingPointError: layers.1.weight: a score is nan"] * 2
    )


def test_a_dead_network_is_an_error_on_every_rank(tmp_path: Path) -> None:
    messages = errors(tmp_path, pruning=ErrorWriter(Random(), num_kept=1))
    assert all(error.startswith("DeadNetwork: the network is dead") for error in messages)


class Unsendable(Random):
    def score(self, state: PruningState) -> dict[str, Tensor]:
        class Local(Exception):
            """Error of a class that other processes cannot import."""

        raise Local("no score")


def test_an_error_that_cannot_be_pickled_is_sent_by_its_name_and_message(tmp_path: Path) -> None:
    assert errors(tmp_path, pruning=ErrorWriter(Unsendable(), density=0.3)) == [
        "Local: no score",
        "RuntimeError: rank 0: Local: no score",
    ]


def test_masks_from_a_file_that_differs_between_nodes_are_those_of_rank_zero(
    tmp_path: Path,
) -> None:
    network = FC((1, 2, 4), depth=3, width=16)
    one, other = (
        Masks(
            {n: (torch.rand(p.shape) < 0.5) for n, p in network.named_parameters() if p.dim() > 1}
        )
        for _ in range(2)
    )
    pruning = PruneAtInit(None, masks_path=None)
    pruning._from_file = one

    class Elsewhere(Callback):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            if trainer.global_rank == 1:
                pruning._from_file = other

    first, second = two(tmp_path, Elsewhere(), pruning).read()
    assert same(first["masks"], second["masks"])
    assert same(first["masks"], dict(one))


def test_two_ranks_in_half_precision_and_channels_last_choose_the_masks_of_one_process(
    tmp_path: Path,
) -> None:
    results = []
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
        callbacks = [writer := ResultWriter(folder), PruneAtInit(SNIP(), density=0.3)]
        run = Trainer(max_epochs=1, callbacks=callbacks, **QUIET, **options)  # type: ignore[arg-type]
        run.fit(module, Small(1, 12, 12))
        results.append(
            [torch.load(path, weights_only=True) for path in sorted(writer.folder.iterdir())]
        )
    (first, second), (single,) = results
    assert same(first["weights"], second["weights"])
    assert same(first["masks"], single["masks"])


class Losses(Callback):
    """Write the losses and metrics of each rank to files."""

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


def test_two_processes_train_a_pruned_network_like_one(tmp_path: Path) -> None:
    results = {}
    for ranks in (2, 1):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        callbacks = [PruneAtInit(SynFlow(), density=0.2, rounds=5), Losses(folder)]
        options: Any = {"devices": 2, "strategy": "ddp_fork"} if ranks == 2 else {"devices": 1}
        # The last of 59 images' batches has three, two for one rank and one for the other. Eight
        # batches with 31 images are validated on.
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
        results[ranks] = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    # Losses are weighted by the number of images, so their mean over ranks is that of the batch.
    shared = (numbers(tmp_path / "2/losses-0") + numbers(tmp_path / "2/losses-1")) / 2
    torch.testing.assert_close(shared, numbers(tmp_path / "1/losses-0"), rtol=1e-4, atol=1e-5)
    for rank in range(2):  # every rank has the metrics of all images
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
        for state in results.values()
    ]
    assert same(*zeros)
    for name in results[1]:
        torch.testing.assert_close(results[2][name], results[1][name], rtol=1e-3, atol=1e-5)


class Odd(Few):
    """Digits with 33 validation images and 33 test images."""

    def images(self, train: bool) -> tuple[Tensor, Tensor]:
        images, labels = super().images(train)
        return (images, labels) if train else (images[:33], labels[:33])


@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.parametrize("batch_size", [34, 10, 4])
def test_two_processes_evaluate_an_odd_number_of_images_like_one(
    stage: str, batch_size: int
) -> None:
    torch.manual_seed(0)
    module = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    data = Odd(val_size=33, batch_size=batch_size)
    results = []
    for options in ({"devices": 2, "strategy": "ddp_fork"}, {"devices": 1}):
        run = Trainer(**QUIET, **options)  # type: ignore[arg-type]
        results.append(getattr(run, stage)(module, datamodule=data, verbose=False)[0])
    assert results[0].keys() == results[1].keys()
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    if stage == "validate":
        images, labels = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
        assert len(labels) == 33
        by_hand = nn.functional.cross_entropy(module(images), labels).item()
        assert results[0]["val/loss"] == pytest.approx(by_hand, rel=1e-5)
