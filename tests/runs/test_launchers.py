"""Launchers: each item runs once, within the limit of parallel processes, with its own status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from synflow_pl.runs import launchers
from synflow_pl.runs.launchers import LauncherError, Slurm, run_locally, run_on_slurm


def _note(item: tuple[Path, int], slot: int) -> None:
    """Write process, slot, start and end into a file, and exit with the item's number."""
    folder, number = item
    begun = time.monotonic()
    time.sleep(0.3)
    (folder / f"{number}").write_text(f"{os.getpid()} {slot} {begun} {time.monotonic()}")
    sys.exit(number)


def _leave(item: int, slot: int) -> None:
    sys.exit(item)


def _end_itself(item: int, slot: int) -> None:
    os.kill(os.getpid(), item)


def _wait(item: Path, slot: int) -> None:
    item.write_text(str(os.getpid()))
    time.sleep(60)


@pytest.mark.parametrize("parallel", [1, 3])
def test_each_item_runs_once_in_its_own_process_within_the_limit_of_parallel_processes(
    parallel: int, tmp_path: Path
) -> None:
    items = [(tmp_path, number) for number in range(5)]
    ended = list(run_locally(_note, items, parallel, []))
    assert sorted(ended) == [((tmp_path, number), number) for number in range(5)]
    records = [(tmp_path / f"{number}").read_text().split() for number in range(5)]
    assert len({process for process, *_ in records} | {str(os.getpid())}) == 6
    assert {int(slot) for _, slot, *_ in records} <= set(range(parallel))
    times = [(float(begun), float(over), slot) for _, slot, begun, over in records]
    for begun, _, slot in times:
        at_work = [other for start, over, other in times if start <= begun < over]
        assert len(at_work) <= parallel
        assert at_work.count(slot) == 1  # a slot, and its GPU, is never used twice at once
    if parallel == 1:
        assert [begun for begun, *_ in times] == sorted(begun for begun, *_ in times)


def test_processes_that_end_while_others_start_keep_their_own_exit_status() -> None:
    items = list(range(150))  # with one polling thread per slot, 20 of these got 255
    assert sorted(run_locally(_leave, items, 8, [])) == [(item, item) for item in items]


def test_a_process_killed_by_a_signal_has_the_negative_signal_as_its_status() -> None:
    assert list(run_locally(_end_itself, [int(signal.SIGKILL)], 1, [])) == [(9, -9)]


def test_an_interrupt_ends_running_processes_and_starts_no_more(tmp_path: Path) -> None:
    items = [tmp_path / "one", tmp_path / "two", tmp_path / "three"]
    runs: Iterator[Any] = run_locally(_wait, items, 2, [])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 3)
        with pytest.raises(KeyboardInterrupt):
            next(runs)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    begun = [int(path.read_text()) for path in items[:2]]
    limit = time.monotonic() + 10
    while any(Path(f"/proc/{process}").exists() for process in begun) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not [process for process in begun if Path(f"/proc/{process}").exists()]
    assert not items[2].exists()


# -- SLURM, replaced by a fake; the slow tests use a real one


def _nothing(item: str, slot: int) -> None:
    raise AssertionError("a job's work is done by the job")


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace submitit by a fake that records resources and cancelled jobs."""
    requested: dict[str, Any] = {"cancelled": []}

    class Executor:
        def __init__(self, folder: Path) -> None:
            pass

        def update_parameters(self, **options: Any) -> None:
            requested.update(options)

        def map_array(self, work: Any, items: list[str]) -> list[Any]:
            names = [f"7_{index}" for index in range(len(items))]
            return [
                SimpleNamespace(
                    job_id=name, cancel=lambda name=name: requested["cancelled"].append(name)
                )
                for name in names
            ]

    helpers = SimpleNamespace(Checkpointable=object)
    failed = SimpleNamespace(utils=SimpleNamespace(FailedJobError=ZeroDivisionError))
    monkeypatch.setitem(
        sys.modules,
        "submitit",
        SimpleNamespace(SlurmExecutor=Executor, helpers=helpers, core=failed),
    )  # type: ignore[arg-type]
    monkeypatch.setattr(launchers.shutil, "which", lambda command: f"/usr/bin/{command}")
    monkeypatch.setattr(launchers, "_POLL_INTERVAL", 0)
    return requested


def answers(monkeypatch: pytest.MonkeyPatch, *texts: str | None) -> None:
    """Replace squeue by the given answers, in order; ``None`` is a failure."""
    left = list(texts)

    def run(command: list[str], **_: Any) -> Any:
        assert command[0] == "squeue"
        text = left.pop(0)
        return subprocess.CompletedProcess(command, 0 if text is not None else 1, text or "", "")

    monkeypatch.setattr(launchers.subprocess, "run", run)


def test_a_job_ends_when_it_leaves_the_queue_but_not_when_the_queue_does_not_answer(
    submitted: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers(monkeypatch, "7_0\n7_1\n7_2\n", None, "7_0\n7_2\n9_1\n", "")
    assert [item for item, _ in run_on_slurm(_nothing, ["a", "b", "c"], Slurm(), tmp_path, [])] == [
        "b",
        "a",
        "c",
    ]
    assert submitted["cancelled"] == []


def test_options_are_passed_to_slurm(
    submitted: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers(monkeypatch, "")
    list(
        run_on_slurm(
            _nothing, ["a"], Slurm(partition="big", gpus=1, cpus=4, time=90, width=8), tmp_path, []
        )
    )
    asked = {
        "partition": "big",
        "gpus_per_node": 1,
        "cpus_per_task": 4,
        "time": 90,
        "array_parallelism": 8,
    }
    assert {name: submitted[name] for name in asked} == asked


def test_closing_the_generator_cancels_the_jobs_that_have_not_ended(
    submitted: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers(monkeypatch, "7_1\n")
    jobs = run_on_slurm(_nothing, ["a", "b"], Slurm(), tmp_path, [])
    assert next(jobs) == ("a", 0)
    jobs.close()  # type: ignore[attr-defined]
    assert submitted["cancelled"] == ["7_1"]


def test_a_missing_slurm_or_submitit_is_reported_in_one_sentence(
    submitted: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launchers.shutil, "which", lambda command: None)
    with pytest.raises(
        LauncherError, match="there is no sbatch here; start the sweep where jobs are submitted"
    ):
        list(run_on_slurm(_nothing, ["a"], Slurm(), tmp_path, []))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(LauncherError, match="needs the package submitit; pip install submitit"):
        list(run_on_slurm(_nothing, ["a"], Slurm(), tmp_path, []))
