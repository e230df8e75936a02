"""The sweep command: no run is done twice, none is lost, and what went wrong is said."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.utilities.exceptions import SIGTERMException

from synflow_pl.cli import sweep as module
from synflow_pl.cli.sweep import sweep
from synflow_pl.runs.sweep_grid import FAILED, Sweep, lock_run
from synflow_pl.training import Classifier

SHORT = ["--model.network.width", "4", "--trainer.max_epochs", "3", "--trainer.accelerator", "cpu"]
SHORT += [
    f"--trainer.limit_{part}_batches={count}"
    for part, count in (("train", 2), ("val", 1), ("test", 1))
]
# In sorted order of densities and as the pruners stand: magnitude at 0.5, then SynFlow, of which
# two rounds are enough here.
GRID = """# A sweep for tests.
recipes: [demo]
pruners: [magnitude, random]
densities: [0.5]
"""
NAMES = ["demo-magnitude-density0.5-seed0", "demo-random-density0.5-seed0"]


@pytest.fixture
def grid(folder: Path) -> Path:
    (folder / "grid.yaml").write_text(GRID)
    return folder


@pytest.fixture
def attempts(grid: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is attempted, in this process, since starting one takes seconds."""
    seen: list[str] = []

    def launched(jobs: Sequence[Any], own: Any) -> Iterator[tuple[Any, int]]:
        for job in jobs:
            seen.append(job.task.name)
            monkeypatch.delenv("SYNFLOW_PL_RUN", raising=False)
            yield job, module._attempt(job)

    monkeypatch.setattr(module, "_launched", launched)
    return seen


def run_sweep(*args: str) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        sweep(["-c", "grid.yaml", *SHORT, *args])
    finally:
        signal.signal(signal.SIGTERM, handler)


def rows(name: str, column: str) -> list[str]:
    with open(Path("sweeps/grid/lightning_logs") / name / "metrics.csv", newline="") as file:
        return [row["epoch"] for row in csv.DictReader(file) if row.get(column)]


def fail_once(monkeypatch: pytest.MonkeyPatch, error: BaseException, times: int = 1) -> None:
    """In epoch 1 of the first run that gets there."""
    left = [error] * times

    def on_train_epoch_start(classifier: Classifier) -> None:
        if classifier.trainer.current_epoch == 1 and left:
            raise left.pop()

    monkeypatch.setattr(Classifier, "on_train_epoch_start", on_train_epoch_start)


def test_every_run_is_trained_and_tested_once_and_then_skipped(
    attempts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run_sweep()
    assert attempts == NAMES
    assert [rows(name, "test/accuracy") for name in NAMES] == [["3"], ["3"]]
    said = capsys.readouterr().out
    assert "[1/2] demo-magnitude-density0.5-seed0: test accuracy" in said
    assert "left" in said
    run_sweep()
    assert attempts == NAMES
    assert "2 runs, 2 of them finished" in capsys.readouterr().out


def test_a_run_that_was_stopped_goes_on_from_its_checkpoint(
    attempts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, SIGTERMException())
    run_sweep()
    assert attempts == [*NAMES, NAMES[0]]
    assert rows(NAMES[0], "val/accuracy") == ["0", "1", "2"]
    assert sorted(path.name for path in Path("sweeps/grid/lightning_logs").iterdir()) == NAMES


def test_a_run_that_failed_starts_anew_is_tried_again_and_the_reason_is_told(
    attempts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_once(monkeypatch, RuntimeError("the disk is full"))
    run_sweep()
    assert attempts == [*NAMES, NAMES[0]]
    assert f"{NAMES[0]} failed: RuntimeError: the disk is full" in capsys.readouterr().out
    assert rows(NAMES[0], "val/accuracy") == ["0", "1", "2"]
    assert not (Path("sweeps/grid/lightning_logs") / NAMES[0] / FAILED).exists()


def test_a_run_that_fails_each_time_is_reported_and_the_others_are_finished(
    attempts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(classifier: Classifier) -> None:
        if "magnitude" in classifier.trainer.log_dir:
            raise RuntimeError("no luck")

    monkeypatch.setattr(Classifier, "on_train_start", fail)
    with pytest.raises(SystemExit) as left:
        run_sweep("--retries", "1")
    assert left.value.code == 1
    said = capsys.readouterr().out
    assert "1 of 2 runs failed 2 times" in said
    assert f"  {NAMES[0]}: RuntimeError: no luck\n    sweeps/grid/logs/{NAMES[0]}.log" in said
    assert rows(NAMES[1], "test/accuracy") == ["3"]


def test_a_dead_network_is_a_result(
    attempts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # Of the 31,540 weights of conv at width 4, the 31,360 of the linear layer are the smallest:
    # magnitude leaves none at 0.001.
    run_sweep("--pruners", "[magnitude]", "--densities", "[0.001]")
    assert attempts == ["demo-magnitude-density0.001-seed0"]
    assert "demo-magnitude-density0.001-seed0: test accuracy" in capsys.readouterr().out


def test_a_run_that_another_process_holds_is_left_to_it(
    attempts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(["-c", "grid.yaml", *SHORT, "--dry_run"])
    task = Sweep(["demo"], ["magnitude"], [0.5]).tasks()[0]
    folder = Path("sweeps/grid")
    folder.mkdir(parents=True)
    with lock_run(folder, task):
        run_sweep()
    assert "1 runs are worked on by another process" in capsys.readouterr().out
    assert not (folder / "lightning_logs" / NAMES[0]).exists()
    assert rows(NAMES[1], "test/accuracy") == ["3"]


def test_a_dry_run_lists_every_run_and_its_commands_and_writes_nothing(
    grid: Path, capsys: pytest.CaptureFixture[str], attempts: list[str]
) -> None:
    run_sweep("--dry_run")
    said = capsys.readouterr().out
    assert (
        "  synflow_pl fit -c demo -c pruners/magnitude --pruning.density 0.5 --pruning.on_collapse warn --seed_everything 0"
        in said
    )
    assert f"--run {NAMES[1]} --trainer.default_root_dir {grid}/sweeps/grid" in said
    assert said.endswith("2 runs, 0 of them finished, in sweeps/grid\n")
    assert attempts == []
    assert [path.name for path in grid.iterdir()] == ["grid.yaml"]


def test_a_dry_run_does_not_look_for_the_width_of_a_narrower_network(
    grid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        module, "dense_baseline", lambda task: pytest.fail("that is minutes of pruning")
    )
    run_sweep("--dry_run", "--pruners", "[narrower_flops]")
    assert (
        "--model.network.width WIDTH --run demo-narrower_flops-density0.5-seed0"
        in capsys.readouterr().out
    )


def test_a_network_that_has_no_width_is_refused_before_any_run(
    grid: Path, attempts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        sweep(
            [
                "-c",
                "grid.yaml",
                "--pruners",
                "[narrower_flops]",
                "--model.network",
                "torch.nn.Flatten",
            ]
        )
    assert left.value.code == 2
    assert (
        "torch.nn.Flatten has no argument width or width_factor, so that there is no narrower one"
        in capsys.readouterr().err
    )
    assert attempts == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--densities", "[2]"], r"densities: 2.0 is not in \(0, 1]"),
        (["--densities", "many"], "densities"),
        (["--pruners", "[synflwo]"], "no recipe 'pruners/synflwo'.*did you mean 'pruners/synflow'"),
        (["--trainer.max_epoch", "1"], "there is no option trainer.max_epoch; did you mean"),
        (
            ["--seed_everything", "3"],
            "--seed_everything cannot be the same for every run of a sweep, .*; give --seeds",
        ),
        (
            ["--pruning.density=0.2"],
            "--pruning.density cannot be the same for every run of a sweep, .*; give --densities",
        ),
        (
            ["--pruning.pruner", "SNIP"],
            "--pruning.pruner cannot be the same for every run of a sweep, .*; give --pruners",
        ),
        (
            ["--options", "{run: mine}"],
            "--run cannot be the same for every run of a sweep, .*; give --folder",
        ),
        (["--retries", "-1"], "retries: -1 must be at least 0"),
        (["--slurm.time", "0"], "slurm.time: 0 must be at least 1"),
        (
            ["--folder", "grid.yaml"],
            "--folder: '.*grid.yaml' cannot be made or written into .*; choose another",
        ),
        (["-c", "no_such_sweep"], "no recipe 'sweeps/no_such_sweep'"),
    ],
)
def test_a_mistake_is_one_sentence_before_any_run(
    args: list[str],
    message: str,
    grid: Path,
    attempts: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    with pytest.raises(SystemExit) as left:
        sweep(["-c", "grid.yaml", *SHORT, *args])
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert re.search(message, said), said
    assert len(said.splitlines()) == 1
    assert attempts == []


def test_ctrl_c_says_how_far_it_is_and_that_it_goes_on(
    grid: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("synflow_pl.cli.sweep._launched", interrupted)
    with pytest.raises(SystemExit) as left:
        sweep(["-c", "grid.yaml", *SHORT])
    assert left.value.code == 130
    assert "Stopped: 0 of 2 runs are finished; the same command goes on." in capsys.readouterr().out


# -- real processes

COMMAND = [sys.executable, "-m", "synflow_pl", "sweep", "-c", "grid.yaml", *SHORT]


def started(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_killed_goes_on_and_does_no_run_twice(
    how: signal.Signals, grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    four = ["--seeds", "[0, 1]"]
    first = started(*four)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("[1/4]"):
            break
    if how == signal.SIGKILL:
        os.killpg(first.pid, how)
        first.wait()
    else:  # as timeout does when a lease is over: what the sweep has started ends with it
        os.kill(first.pid, how)
        assert first.wait(timeout=60) == 128 + how
        end = time.monotonic() + 60
        while _there_is_one_of(first.pid) and time.monotonic() < end:
            time.sleep(0.1)
        assert not _there_is_one_of(first.pid)
    logs = grid / "sweeps" / "grid" / "lightning_logs"
    done = {
        path: (path / "metrics.csv").stat().st_mtime_ns
        for path in logs.iterdir()
        if "test/accuracy" in _head(path)
    }
    assert 1 <= len(done) < 4
    said, _ = started(*four).communicate(timeout=600)
    assert f"4 runs, {len(done)} of them finished" in said
    assert sorted(path.name for path in logs.iterdir()) == sorted(
        f"demo-{pruner}-density0.5-seed{seed}"
        for pruner in ("magnitude", "random")
        for seed in (0, 1)
    )
    assert all((path / "metrics.csv").stat().st_mtime_ns == time for path, time in done.items())
    assert [rows(path.name, "test/accuracy") for path in logs.iterdir()] == [["3"]] * 4


def _there_is_one_of(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _head(run: Path) -> str:
    return (
        (run / "metrics.csv").read_text().partition("\n")[0]
        if (run / "metrics.csv").exists()
        else ""
    )


@pytest.mark.slow
def test_when_only_the_sweep_is_killed_its_runs_go_on_and_a_second_one_leaves_them_alone(
    grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    first = started("--trainer.max_epochs", "60")
    logs = grid / "sweeps" / "grid" / "lightning_logs"
    while not list(logs.glob("*/checkpoints/*.ckpt")):
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    os.killpg(
        first.pid, signal.SIGSTOP
    )  # so that its run is not over before the second sweep has looked
    said, _ = started("--trainer.max_epochs", "60").communicate(timeout=600)
    assert "1 runs are worked on by another process" in said
    os.killpg(first.pid, signal.SIGCONT)
    while "test/accuracy" not in _head(logs / NAMES[0]):
        time.sleep(0.1)
    assert sorted(path.name for path in logs.iterdir()) == NAMES
    assert rows(NAMES[0], "val/accuracy") == [str(epoch) for epoch in range(60)]
