"""Make one run of a sweep in a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from synflow_pl.cli.dense_baselines import dense_baseline
from synflow_pl.cli.main import run
from synflow_pl.cli.multishot import multishot
from synflow_pl.cli.subcommands import test
from synflow_pl.cli.sweep_commands import evaluation_command, training_command
from synflow_pl.cli.sweep_locks import lock_run
from synflow_pl.runs.sweep_grid import FAILED, Task, accuracy
from synflow_pl.training import find_checkpoint

__all__ = ["BUSY", "STOPPED", "Job", "attempt", "failure_of", "work"]

BUSY = 75
"""Exit status of a process whose run is locked by another: EX_TEMPFAIL of sysexits.h."""
STOPPED = 128 + signal.SIGTERM
"""Exit status of a process that SIGTERM has stopped."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep, and how many share the machine.

    Attributes:
        folder: Folder of the sweep.
        task: The run.
        share: Number of runs at a time on this machine, each with its share of the cores and one
            GPU.
    """

    folder: Path
    task: Task
    share: int

    @property
    def log(self) -> Path:
        """File with the output of the run."""
        return self.folder / "logs" / f"{self.task.name}.log"


def work(job: Job, place: int) -> None:
    """Make one run in a separate process, with its output redirected to the run's log.

    Args:
        job: The run.
        place: Number of the process among those that run at a time, from 0.
    """
    # Ctrl-C must end the process without a KeyboardInterrupt, which would be logged as an error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with open(job.log, "a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    if job.share > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // job.share))
        if gpus := _visible_gpus():
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    sys.exit(attempt(job))


def attempt(job: Job) -> int:
    """Train and test one run, resuming it if it was stopped, and return an exit status.

    Args:
        job: The run.
    """
    folder, task = job.folder, job.task
    run_folder = folder / "lightning_logs" / task.name
    with lock_run(folder, task) as free:
        if not free:
            return BUSY
        # Another machine may have finished the run in the meantime.
        if accuracy(folder, task) is not None:
            return 0
        try:
            _train_and_test(folder, task, run_folder)
        except SIGTERMException:
            return STOPPED
        except SystemExit as left:
            if left.code in (0, STOPPED):
                return left.code
            reason = _last_line(job.log)  # the error message
        except Exception as error:
            traceback.print_exc()
            reason = " ".join(f"{type(error).__name__}: {error}".split())
        else:
            return 0
        if run_folder.is_dir():
            (run_folder / FAILED).write_text(f"{reason}\n")
        return 1


def _train_and_test(folder: Path, task: Task, run_folder: Path) -> None:
    if task.levels:
        multishot(training_command(task, folder)[1:])
        run(evaluation_command(task, folder))
        return
    baseline = dense_baseline(task) if task.like else None
    network = {baseline.argument: baseline.width} if baseline else {}
    resumable = _is_resumable(run_folder)
    if run_folder.exists() and not resumable:
        shutil.rmtree(run_folder)
    session = run(training_command(task, folder, resume=resumable, network=network))
    if baseline is not None:
        baseline.save(run_folder)
    test(session, model=session.model, datamodule=session.datamodule)


def _is_resumable(run_folder: Path) -> bool:
    """Return whether a run has a checkpoint and was stopped, rather than ended by an error."""
    if (run_folder / FAILED).exists():
        return False
    try:
        find_checkpoint(run_folder)
    except FileNotFoundError:
        return False
    return True


def _visible_gpus() -> list[str]:
    """Return the names of the visible GPUs, as in CUDA_VISIBLE_DEVICES."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        [name for name in given.split(",") if name]
        if given is not None
        else [str(index) for index in range(torch.cuda.device_count())]
    )


def failure_of(job: Job, status: int) -> str:
    """Return in one line why a run has no result.

    Args:
        job: The run.
        status: Exit status of its process; negative for a signal.
    """
    if status < 0 or status == STOPPED:
        return f"its process was ended by {signal.Signals(abs(status) % 128).name}"
    failed = job.folder / "lightning_logs" / job.task.name / FAILED
    if failed.is_file():
        return failed.read_text(errors="replace").strip()
    return _last_line(job.log) if status else "its job ended without a result"


def _last_line(log: Path) -> str:
    lines = (
        [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if log.is_file()
        else []
    )
    return lines[-1].strip() if lines else "it said nothing"
