"""Tests of a run's record: its configuration after resuming, its end, and its tests."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import QUIET

from synflow_pl.cli.main import run
from synflow_pl.cli.recipes import overlays
from synflow_pl.cli.session import Session
from synflow_pl.runs.progress import progress
from synflow_pl.runs.run_files import SkippedRun
from synflow_pl.runs.run_record import read_run
from synflow_pl.runs.training_record import read_record
from synflow_pl.training import find_checkpoint
from synflow_pl.training.checkpoints import read as content_of

SHORT = [
    "--model.network.width",
    "2",
    "--trainer.accelerator",
    "cpu",
    "--pruning.rounds",
    "2",
    *QUIET,
]
SHORT += ["--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1"]
FIT = ["fit", "-c", "demo", *SHORT]
EARLY = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss"]
EARLY += ["--trainer.callbacks.patience", "1", "--trainer.callbacks.min_delta", "100"]
RUN = Path("lightning_logs/a")


def setting_of(name: str, key: str) -> object:
    content = yaml.safe_load(Path("lightning_logs", name, "config.yaml").read_text())
    for part in key.split("."):
        content = content[part]
    return content


def rows_of_tests(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("test/accuracy")]


@pytest.mark.parametrize(
    ("ending", "steps"),
    [
        (["--trainer.max_epochs", "5", *EARLY], 6),
        (["--trainer.max_epochs", "5", "--trainer.max_steps", "4"], 4),
        (["--trainer.max_epochs", "1000", "--trainer.max_time", "00:00:00:01"], None),
        (["--trainer.max_epochs", "1"], 3),
    ],
    ids=["EarlyStopping", "max_steps", "max_time", "max_epochs"],
)
def test_a_run_that_has_ended_is_not_trained_again_however_it_ended(
    ending: list[str], steps: int | None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*FIT, *ending, "--run", "a"]
    run(command)
    before = find_checkpoint(RUN).read_bytes()
    record = read_record(RUN)
    assert record is not None
    assert record.ended
    assert record.steps == (steps or content_of(find_checkpoint(RUN))["global_step"]) > 0
    metrics = (RUN / "metrics.csv").read_bytes()
    capsys.readouterr()
    for again in ("last", "last", str(RUN)):
        run([*command, "--ckpt_path", again])
        assert (
            f"lightning_logs/a has come to its end after {record.epochs} epochs ({record.steps} "
            "steps)" in capsys.readouterr().out
        )
        assert find_checkpoint(RUN).read_bytes() == before
        assert read_record(RUN) == record
    assert (RUN / "metrics.csv").read_bytes().startswith(metrics)
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["a"]


def test_after_more_epochs_of_an_ended_run_its_earlier_test_is_no_longer_final(
    folder: Path,
) -> None:
    run([*FIT, *EARLY, "--trainer.max_epochs", "2", "--run", "a"])
    run(["test", "--ckpt_path", str(RUN), *QUIET])
    assert read_run(RUN, overlays()).accuracies.final is not None
    run([*FIT, *EARLY, "--trainer.max_epochs", "3", "--run", "a", "--ckpt_path", str(RUN)])
    assert content_of(find_checkpoint(RUN))["global_step"] == 9
    with pytest.raises(SkippedRun, match="it is not tested yet"):
        read_run(RUN, overlays())
    run(["test", "--ckpt_path", str(RUN), *QUIET])
    assert read_run(RUN, overlays()).accuracies.final is not None


def test_the_final_accuracy_is_that_of_the_last_checkpoint_despite_later_tests(
    folder: Path,
) -> None:
    keep = [
        "--trainer.callbacks",
        "ModelCheckpoint",
        "--trainer.callbacks.save_top_k=-1",
        "--trainer.callbacks.every_n_epochs=1",
    ]
    run([*FIT, "--trainer.max_epochs", "2", "--run", "a", *keep])
    run(["test", "--ckpt_path", str(RUN), *QUIET])
    final = progress(RUN).final
    (first,) = (RUN / "checkpoints").glob("epoch=0*")
    run(["test", "--ckpt_path", str(first), *QUIET])
    run(["test", "--ckpt_path", str(RUN), "--trainer.limit_test_batches", "1", *QUIET])
    assert progress(RUN).final == final == read_run(RUN, overlays()).accuracies.final
    assert [
        (row["epoch"], row["step"], row["test/checkpoint"], row["test/otherwise"])
        for row in rows_of_tests(RUN)
    ] == [
        ("1", "5", "checkpoints/last.ckpt", ""),
        ("0", "2", f"checkpoints/{first.name}", ""),
        ("1", "5", "checkpoints/last.ckpt", "trainer.limit_test_batches=1"),
    ]


def test_the_configuration_of_a_resumed_run_has_the_options_in_effect(folder: Path) -> None:
    run([*FIT, "--trainer.max_epochs", "1", "--run", "a"])
    other = [
        "--model.optimizer.lr",
        "0.0001",
        "--model.scheduler.gamma",
        "0.5",
        "--pruning.density",
        "0.5",
        "--pruning.scope",
        "local",
    ]
    other += [
        "--pruning.pruner",
        "SNIP",
        "--seed_everything",
        "3",
        "--trainer.max_epochs",
        "2",
        "--ckpt_path",
        str(RUN),
    ]
    for name in ("b", "a"):
        cli = run([*FIT, *other, "--run", name])
        (group,) = cli.trainer.optimizers[0].param_groups
        assert setting_of(name, "model.optimizer.init_args.lr") == group["initial_lr"] == 0.05
        assert setting_of(name, "model.scheduler.init_args.gamma") == 0.1
        assert setting_of(name, "pruning.density") == 0.05
        assert setting_of(name, "pruning.scope") == "global"
        assert setting_of(name, "pruning.pruner.class_path") == "synflow_pl.pruners.SynFlow"
        assert setting_of(name, "trainer.max_epochs") == 2
    # Weights and masks were drawn with the run's seed; a run with another name may draw its batches
    # with another seed.
    assert (setting_of("a", "seed_everything"), setting_of("b", "seed_everything")) == (0, 3)


def test_a_run_resumed_under_another_name_is_reported_like_any_other(folder: Path) -> None:
    run([*FIT, "--trainer.max_epochs", "1", "--run", "a"])
    find_checkpoint(RUN).rename("moved.ckpt")
    run([*FIT, "--trainer.max_epochs", "2", "--run", "b", "--ckpt_path", "moved.ckpt"])
    was, now = (
        json.loads(Path("lightning_logs", name, "diagnosis.json").read_text()) for name in "ab"
    )
    for key in ("kept", "total", "density", "effective_density", "alive", "flops", "sparse_flops"):
        assert was[key] == now[key], key
    run(["test", "--ckpt_path", "lightning_logs/b", *QUIET])
    record_of_run = read_run(Path("lightning_logs/b"), overlays())
    assert record_of_run.accuracies.final is not None
    assert record_of_run.kept == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("form", [["-c", "demo"], ["-c=demo"], ["--config=demo"], ["-cdemo"]])
def test_an_option_typed_before_a_file_overrides_it(
    form: list[str], built: Callable[..., Session]
) -> None:
    options = built(
        "fit", "--trainer.max_epochs", "1", "--pruning.density=0.5", *form, "-c", "pruners/snip"
    ).options
    assert (options.trainer.max_epochs, options.pruning.density) == (1, 0.5)
    assert options.pruning.pruner.class_path == "synflow_pl.pruners.SNIP"
