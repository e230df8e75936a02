"""Train and test a grid of runs; finished runs are skipped, and failed runs are retried."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from jsonargparse import Namespace

from synflow_pl.cli.command import parse_fit
from synflow_pl.cli.dense_baselines import width_of
from synflow_pl.cli.errors import exit_with_error
from synflow_pl.cli.multishot import planned
from synflow_pl.cli.sweep_commands import evaluation_command, fit_options, training_command
from synflow_pl.cli.sweep_job import BUSY, STOPPED, Job, failure_of, work
from synflow_pl.cli.sweep_locks import check_existing_runs
from synflow_pl.cli.sweep_options import parse_sweep, sweep_option_names
from synflow_pl.io import check_folder, storage_error
from synflow_pl.runs.launchers import LauncherError, run_locally, run_on_slurm
from synflow_pl.runs.sweep_grid import Sweep, Task, accuracy

__all__ = ["sweep"]

_QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")
_SLOW_TO_CHECK = 20
_PRELOAD = ("synflow_pl.cli.sweep_job", "torch.utils.tensorboard", "matplotlib.figure")


def sweep(args: list[str]) -> None:
    """Run a sweep, or with ``--dry_run`` list its runs.

    The exit status is 1 if a run has failed in every attempt.

    Args:
        args: ``-c configs/sweeps/NAME.yaml``, the sweep's own options, and options of ``fit`` for
            every run.
    """
    own, grid, extra = parse_sweep(args)
    folder = Path(own.folder or Path("sweeps") / own.name).resolve()
    tasks = _checked_tasks(grid, extra, folder)
    left = [task for task in tasks if accuracy(folder, task) is None]
    if own.dry_run:
        for task in tasks:
            _show(task, folder, task not in left)
        print(
            f"{len(tasks)} runs, {len(tasks) - len(left)} of them finished, in "
            f"{os.path.relpath(folder)}"
        )
        return
    try:
        check_folder(folder / "logs", "--folder")
    except OSError as error:
        cause = storage_error(error) or error
        exit_with_error(
            f"--folder: {str(folder)!r} cannot be made or written into ({cause.strerror}); choose "
            "another"
        )
    try:
        _run(tasks, left, folder, own)
    except KeyboardInterrupt:
        done = sum(accuracy(folder, task) is not None for task in tasks)
        print(
            f"Stopped: {done} of {len(tasks)} runs are finished; the same command resumes the "
            "sweep.",
            flush=True,
        )
        raise SystemExit(128 + signal.SIGINT) from None


def _run(tasks: Sequence[Task], left: list[Task], folder: Path, own: Namespace) -> None:
    """Make the remaining runs, print the progress, and report the failures at the end."""
    # SystemExit, unlike the default action, lets the launcher end the processes of the runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    progress = _Progress(len(tasks), len(tasks) - len(left))
    print(
        f"{len(tasks)} runs, {len(tasks) - len(left)} of them finished, in "
        f"{os.path.relpath(folder)}"
    )
    share = own.parallel if own.launcher == "local" else 1
    busy: list[Task] = []
    failures: dict[str, str] = {}
    for attempt in range(1 + own.retries):
        if not left:
            break
        if attempt:
            print(f"Trying {len(left)} again that failed.")
        failures = {}
        for job, status in _launched([Job(folder, task, share) for task in left], own):
            task = job.task
            reached = accuracy(folder, task)
            if reached is not None:
                progress.ended(task.name, f"test accuracy {reached:.2%}")
            elif status == BUSY:
                busy.append(task)
            else:
                failures[task.name] = failure_of(job, status)
                print(f"{task.name} failed: {failures[task.name]}", flush=True)
        left = [task for task in left if task.name in failures]
    if busy:
        print(
            f"{len(busy)} runs are worked on by another process; start the sweep again to see what "
            "became of them."
        )
    if failures:
        print(
            f"{len(failures)} of {len(tasks)} runs failed {1 + own.retries} times; start the sweep "
            "again to try them once more:"
        )
        for name, reason in failures.items():
            print(f"  {name}: {reason}\n    {os.path.relpath(folder / 'logs' / name)}.log")
    print(f"Report the results with: synflow_pl report {os.path.relpath(folder)}")
    if failures:
        raise SystemExit(1)


def _checked_tasks(grid: Sweep, extra: Sequence[str], folder: Path) -> list[Task]:
    """Return the runs of the sweep after checking the options of each kind of run once.

    So a mistake is reported before the first run starts.
    """
    own = sweep_option_names()
    try:
        tasks = grid.tasks([*_QUIET, *extra])
        kinds = {(task.recipe, task.overlay, task.levels, task.like): task for task in tasks}
        if len(kinds) > _SLOW_TO_CHECK:
            print(f"Checking the options of {len(kinds)} kinds of runs.", flush=True)
        for task in kinds.values():
            if task.levels:
                planned(["--levels", str(task.levels), *fit_options(task)], own)
            elif task.like:
                # The width itself requires a pruning, so it is computed when the run starts.
                width_of(task)
            else:
                parse_fit(fit_options(task), own)
        check_existing_runs(folder, tasks)
    except (ValueError, FileNotFoundError) as error:
        exit_with_error(str(error))
    return tasks


def _show(task: Task, folder: Path, ended: bool) -> None:
    """Print a run and its commands; WIDTH stands for a width that is computed later."""
    print(f"{task.name}{' (finished)' if ended else ''}", flush=True)
    if not ended:
        network = {width_of(task): "WIDTH"} if task.like else {}
        for command in (
            training_command(task, folder, network=network),
            evaluation_command(task, folder),
        ):
            print(f"  synflow_pl {shlex.join(command)}")


def _launched(jobs: Sequence[Job], own: Namespace) -> Iterator[tuple[Job, int]]:
    if own.launcher == "local":
        yield from run_locally(work, jobs, own.parallel, _PRELOAD)
        return
    try:
        yield from run_on_slurm(work, jobs, own.slurm, jobs[0].folder / "slurm", _PRELOAD)
    except LauncherError as error:
        exit_with_error(str(error))


class _Progress:
    """Print after each run how many are done, and an estimate of the remaining time.

    Args:
        total: Number of runs.
        done: Number of runs that were finished before.
    """

    def __init__(self, total: int, done: int) -> None:
        self._total, self._done, self._before = total, done, done
        self._begun = time.monotonic()

    def ended(self, name: str, what: str) -> None:
        self._done += 1
        elapsed = time.monotonic() - self._begun
        left = elapsed / (self._done - self._before) * (self._total - self._done)
        when = (
            f"about {_duration(left)} left"
            if self._done < self._total
            else f"{_duration(elapsed)} in all"
        )
        print(
            f"[{self._done:>{len(str(self._total))}}/{self._total}] {name}: {what}; {when}",
            flush=True,
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02} min"
        if hours
        else f"{minutes} min {seconds:02} s"
        if minutes
        else f"{seconds} s"
    )
