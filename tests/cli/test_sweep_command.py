"""Tests of the command ``sweep``: finished runs are skipped, failed ones retried and reported."""

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
from synflow_pl.cli import sweep_job
from synflow_pl.cli.sweep import sweep
from synflow_pl.cli.sweep_locks import lock_run
from synflow_pl.runs.sweep_grid import FAILED, Sweep
from synflow_pl.training import Classifier

SHORT = ["--model.network.width", "4", "--trainer.max_epochs", "3", "--trainer.accelerator", "cpu"]
SHORT += [
    f"--trainer.limit_{part}_batches={count}"
    for part, count in (("train", 2), ("val", 1), ("test", 1))
]
# Runs are sorted by density; at the same density the pruners are in the order of the list.
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
    """Make each run in this process, and list the names of the runs that are attempted."""
    seen: list[str] = []

    def launched(jobs: Sequence[Any], own: Any) -> Iterator[tuple[Any, int]]:
        for job in jobs:
            seen.append(job.task.name)
            monkeypatch.delenv("SYNFLOW_PL_RUN", raising=False)
            yield job, sweep_job.attempt(job)

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
    """Raise an error in epoch 1 of the first runs that reach it."""
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
    output = capsys.readouterr().out
    assert "[1/2] demo-magnitude-density0.5-seed0: test accuracy" in output
    assert "left" in output
    run_sweep()
    assert attempts == NAMES
    assert "2 runs, 2 of them finished" in capsys.readouterr().out


def test_a_run_that_was_stopped_resumes_from_its_checkpoint(
    attempts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, SIGTERMException())
    run_sweep()
    assert attempts == [*NAMES, NAMES[0]]
    assert rows(NAMES[0], "val/accuracy") == ["0", "1", "2"]
    assert sorted(path.name for path in Path("sweeps/grid/lightning_logs").iterdir()) == NAMES


def test_a_run_that_failed_is_retried_from_the_start_and_the_reason_is_printed(
    attempts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_once(monkeypatch, RuntimeError("the disk is full"))
    run_sweep()
    assert attempts == [*NAMES, NAMES[0]]
    assert f"{NAMES[0]} failed: RuntimeError: the disk is full" in capsys.readouterr().out
    assert rows(NAMES[0], "val/accuracy") == ["0", "1", "2"]
    assert not (Path("sweeps/grid/lightning_logs") / NAMES[0] / FAILED).exists()


def test_a_run_that_fails_in_every_attempt_is_reported_and_the_others_are_finished(
    attempts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(classifier: Classifier) -> None:
        if "magnitude" in classifier.trainer.log_dir:
            raise RuntimeError("no luck")

    monkeypatch.setattr(Classifier, "on_train_start", fail)
    with pytest.raises(SystemExit) as raised:
        run_sweep("--retries", "1")
    assert raised.value.code == 1
    output = capsys.readouterr().out
    assert "1 of 2 runs failed 2 times" in output
    assert f"  {NAMES[0]}: RuntimeError: no luck\n    sweeps/grid/logs/{NAMES[0]}.log" in output
    assert rows(NAMES[1], "test/accuracy") == ["3"]


def test_a_disconnected_network_is_a_result_of_a_sweep(
    attempts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # conv with width 4 has 31,540 weights, of which the 31,360 of the linear layer are the
    # smallest: magnitude pruning to 0.001 keeps none of them.
    run_sweep("--pruners", "[magnitude]", "--densities", "[0.001]")
    assert attempts == ["demo-magnitude-density0.001-seed0"]
    assert "demo-magnitude-density0.001-seed0: test accuracy" in capsys.readouterr().out


def test_a_run_that_another_process_has_locked_is_skipped(
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
    output = capsys.readouterr().out
    assert (
        "  synflow_pl fit -c demo -c pruners/magnitude --pruning.density 0.5 --pruning.on_collapse "
        "warn --seed_everything 0" in output
    )
    assert f"--run {NAMES[1]} --trainer.default_root_dir {grid}/sweeps/grid" in output
    assert output.endswith("2 runs, 0 of them finished, in sweeps/grid\n")
    assert attempts == []
    assert [path.name for path in grid.iterdir()] == ["grid.yaml"]


def test_a_dry_run_does_not_compute_the_width_of_a_narrower_network(
    grid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sweep_job, "dense_baseline", lambda task: pytest.fail("that is minutes of pruning")
    )
    run_sweep("--dry_run", "--pruners", "[narrower_flops]")
    assert (
        "--model.network.width WIDTH --run demo-narrower_flops-density0.5-seed0"
        in capsys.readouterr().out
    )


def test_a_narrower_network_without_a_width_is_an_error_before_any_run(
    grid: Path, attempts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
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
    assert raised.value.code == 2
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
def test_a_mistake_in_a_sweep_is_one_sentence_before_any_run(
    args: list[str],
    message: str,
    grid: Path,
    attempts: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    with pytest.raises(SystemExit) as raised:
        sweep(["-c", "grid.yaml", *SHORT, *args])
    output = capsys.readouterr().err
    assert raised.value.code == 2
    assert re.search(message, output), output
    assert len(output.splitlines()) == 1
    assert attempts == []


def test_the_message_after_ctrl_c_states_the_progress_and_how_to_resume(
    grid: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("synflow_pl.cli.sweep._launched", interrupted)
    with pytest.raises(SystemExit) as raised:
        sweep(["-c", "grid.yaml", *SHORT])
    assert raised.value.code == 130
    assert (
        "Stopped: 0 of 2 runs are finished; the same command resumes the sweep."
        in capsys.readouterr().out
    )


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
def test_a_sweep_that_was_killed_is_resumed_and_repeats_no_finished_run(
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
    else:  # the processes that the sweep has started end with it
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
    output, _ = started(*four).communicate(timeout=600)
    assert f"4 runs, {len(done)} of them finished" in output
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
def test_runs_continue_when_only_the_sweep_is_killed_and_a_second_sweep_skips_them(
    grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    first = started("--trainer.max_epochs", "60")
    logs = grid / "sweeps" / "grid" / "lightning_logs"
    while not list(logs.glob("*/checkpoints/*.ckpt")):
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    # The run is paused, so that it has not ended when the second sweep starts.
    os.killpg(first.pid, signal.SIGSTOP)
    output, _ = started("--trainer.max_epochs", "60").communicate(timeout=600)
    assert "1 runs are worked on by another process" in output
    os.killpg(first.pid, signal.SIGCONT)
    while "test/accuracy" not in _head(logs / NAMES[0]):
        time.sleep(0.1)
    assert sorted(path.name for path in logs.iterdir()) == NAMES
    assert rows(NAMES[0], "val/accuracy") == [str(epoch) for epoch in range(60)]
