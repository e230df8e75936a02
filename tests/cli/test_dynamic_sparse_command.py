"""RigL and SET on the command line: overlays, sweeps, refusals, and kills with SIGKILL."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import QUIET
from crash import check, crash, undisturbed

from synflow_pl import Masks, PruneAtInit
from synflow_pl.cli import sweep as sweep_module
from synflow_pl.cli import sweep_job
from synflow_pl.cli.main import run
from synflow_pl.cli.report import report
from synflow_pl.cli.sweep import sweep
from synflow_pl.pruners import SET, RigL

SHORT = ["--model.network.width", "4", "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"]
SHORT += [
    f"--trainer.limit_{part}_batches={count}"
    for part, count in (("train", 8), ("val", 1), ("test", 1))
]
LOGS = Path("lightning_logs")


def column(name: str, run_name: str) -> list[str]:
    with open(LOGS / run_name / "metrics.csv", newline="") as file:
        return [row[name] for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.parametrize("overlay", ["rigl", "set"])
def test_an_overlay_trains_with_moving_masks_and_tests_the_result(
    overlay: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--pruning.density", "0.1", "--pruning.pruner.delta_t", "3"]
    session = run(["fit", "-c", "demo", "-c", f"pruners/{overlay}", *options, *SHORT, *QUIET])
    (pruning,) = (x for x in session.trainer.callbacks if isinstance(x, PruneAtInit))
    name = f"demo-{overlay}-density0.1-seed0"
    assert [path.name for path in LOGS.iterdir()] == [name]
    # 16 steps, of which 12 are the first three quarters: updates at 3, 6 and 9.
    assert len(column("pruning/drop_fraction", name)) == 3
    masks = Masks.load(LOGS / name / "masks.safetensors")
    assert (masks.kept, masks.total) == (pruning.masks.kept, pruning.masks.total)
    assert masks.kept == -(-masks.total // 10)
    assert all(not weight[~mask].any() for weight, mask in masks.parameters(session.model.network))
    session = run(["test", "--ckpt_path", str(LOGS / name), *QUIET])
    assert column("test/accuracy", name)


@pytest.mark.parametrize("overlay", ["rigl", "set"])
@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("-c structure/units", "granularity: 'unit' removes groups of weights"),
        ("--pruning.compact true", "compact: true needs masks that do not change"),
        ("-c sanity/shuffle", "sanity: shuffle needs masks that do not change"),
        ("--pruning.pruner.delta_t 0", "delta_t: 0 must be a whole number of optimiser steps"),
        (
            "--pruning.pruner.initial synflow_pl.pruners.GradualMagnitude",
            "initial: GradualMagnitude prunes during training",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence_before_anything_is_read(
    overlay: str,
    typed: str,
    message: str,
    folder: Path,
    touched: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as raised:
        run(["fit", "-c", "demo", "-c", f"pruners/{overlay}", *typed.split(), *QUIET])
    assert raised.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert touched == []
    assert not LOGS.exists()


def test_initial_masks_and_options_are_chosen_on_the_command_line(folder: Path) -> None:
    options = "--pruning.pruner.initial SynFlow --pruning.rounds 3 --pruning.pruner.t_end 0.5"
    few = ["--pruning.pruner.delta_t", "3", *SHORT, *QUIET]
    session = run(["fit", "-c", "demo", "-c", "pruners/rigl", *options.split(), *few])
    (pruning,) = (x for x in session.trainer.callbacks if isinstance(x, PruneAtInit))
    assert isinstance(pruning.pruner, RigL)
    assert type(pruning.pruner.initial).__name__ == "SynFlow"
    (saved,) = LOGS.glob("*/config.yaml")
    assert yaml.safe_load(saved.read_text())["pruning"]["pruner"]["init_args"]["t_end"] == 0.5
    # 16 steps: updates at 3 and 6.
    assert len(column("pruning/drop_fraction", saved.parent.name)) == 2


def test_a_sweep_compares_them_with_pruning_at_initialisation(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def launched(jobs: Sequence[Any], own: Any) -> Iterator[tuple[Any, int]]:
        for job in jobs:
            monkeypatch.delenv("SYNFLOW_PL_RUN", raising=False)
            yield job, sweep_job.attempt(job)

    monkeypatch.setattr(sweep_module, "_launched", launched)
    Path("grid.yaml").write_text(
        "recipes: [demo]\npruners: [synflow, rigl, set]\ndensities: [0.2]\n"
    )
    # delta_t is an option of two of the pruners only, so 140 small steps are trained instead.
    length = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "70"]
    length += ["--data.batch_size", "4"]
    sweep(["-c", "grid.yaml", *SHORT, *length])
    names = [f"demo-{name}-density0.2-seed0" for name in ("synflow", "rigl", "set")]
    assert sorted(path.name for path in Path("sweeps/grid/lightning_logs").iterdir()) == sorted(
        names
    )
    monkeypatch.chdir("sweeps/grid")
    assert [len(column("pruning/drop_fraction", name)) for name in names] == [0, 1, 1]
    monkeypatch.chdir("../..")
    capsys.readouterr()
    report(["sweeps/grid"])
    output = capsys.readouterr().out
    for name in ("synflow", "rigl", "set"):
        assert f" {name} " in output, output


@pytest.mark.slow
@pytest.mark.parametrize("pruner", [RigL, SET])
def test_training_that_is_killed_and_resumed_ends_bitwise_as_undisturbed(
    pruner: type, tmp_path: Path
) -> None:
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    for each in (folder, whole):
        each.mkdir()
    more = ["--pruning.pruner", pruner.__name__, "--pruning.pruner.delta_t", "7"]
    more += ["--pruning.rounds", "1"]
    undisturbed(whole, 4, *more)
    # 200 steps: the masks are chosen once and updated at each seventh step before step 150.
    check(folder, whole, crash(folder, ["writing", "epoch"], 4, more=more), densities=1 + 21)
