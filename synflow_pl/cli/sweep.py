"""Train and test a grid of runs; finished runs are skipped, and failed runs are retried."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from pytorch_lightning.utilities.exceptions import SIGTERMException

from synflow_pl.cli.command import parse_fit
from synflow_pl.cli.dense_baselines import dense_baseline, width_of
from synflow_pl.cli.errors import clarify, exit_with_error
from synflow_pl.cli.main import run
from synflow_pl.cli.multishot import multishot, planned
from synflow_pl.cli.recipes import find_recipe
from synflow_pl.cli.subcommands import test
from synflow_pl.io import check_folder, storage_error
from synflow_pl.runs.launchers import LauncherError, Slurm, run_locally, run_on_slurm
from synflow_pl.runs.sweep_grid import FAILED, Sweep, Task, accuracy, check_existing_runs, lock_run
from synflow_pl.training import find_checkpoint

__all__ = ["parsed", "sweep"]

_QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")
_PRELOAD = ("synflow_pl.cli.sweep", "torch.utils.tensorboard", "matplotlib.figure")
_BUSY = 75
"""Exit status of a process whose run is locked by another: EX_TEMPFAIL of sysexits.h."""

_STOPPED = 128 + signal.SIGTERM


def sweep(args: list[str]) -> None:
    """Run a sweep, or with ``--dry_run`` list its runs.

    The exit status is 1 if a run has failed in every attempt.

    Args:
        args: ``-c configs/sweeps/NAME.yaml``, the sweep's own options, and options of ``fit`` for
            every run.
    """
    own, grid, extra = parsed(args)
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_STOPPED))
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
        for job, status in _launched([_Job(folder, task, share) for task in left], own):
            task = job.task
            reached = accuracy(folder, task)
            if reached is not None:
                progress.ended(task.name, f"test accuracy {reached:.2%}")
            elif status == _BUSY:
                busy.append(task)
            else:
                failures[task.name] = _reason(job, status)
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


# -- options


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="synflow_pl sweep",
        usage="%(prog)s -c SWEEP [--folder FOLDER] [--dry_run] [--launcher slurm] [OPTIONS OF fit]",
        description=__doc__,
        exit_on_error=False,
    )
    parser.add_argument(
        "-c", "--config", action="config", help="the sweep's file: a name (sweeps/mnist) or a path"
    )
    parser.add_class_arguments(Sweep)
    parser.add_argument(
        "--folder", type=str | None, default=None, help="where its runs lie; by default sweeps/NAME"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="list the runs and their commands, and run nothing"
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=1,
        help="how often a run that failed is tried again, at least 0",
    )
    parser.add_argument(
        "--parallel",
        type=int | None,
        default=None,
        help="runs at a time on this machine; by default one per GPU, else 1",
    )
    parser.add_argument(
        "--launcher",
        choices=["local", "slurm"],
        default="local",
        help="this machine, or a job array of SLURM",
    )
    parser.add_class_arguments(Slurm, "slurm")
    return parser


def parsed(args: Sequence[str]) -> tuple[Namespace, Sweep, list[str]]:
    """Parse the options of ``sweep``.

    Args:
        args: Arguments after ``sweep`` on the command line.

    Returns:
        The sweep's own options, its grid, and the remaining arguments, which are options of
        ``fit``.
    """
    parser = _parser()
    flags = {
        option
        for action in parser._actions
        for option in action.option_strings
        if action.nargs == 0
    }
    known = {option for action in parser._actions for option in action.option_strings}
    ours: list[str] = []
    extra: list[str] = []
    files: list[Path] = []
    index = 0
    while index < len(args):
        option, equals, value = args[index].partition("=")
        if option not in known:
            extra.append(args[index])
        elif equals or option in flags:
            ours.append(args[index])
        else:
            index += 1
            value = args[index] if index < len(args) else ""
            ours += [option, value]
        if option in ("-c", "--config") and value:
            try:
                files.append(
                    find_recipe(
                        value if "/" in value or Path(value).is_file() else f"sweeps/{value}"
                    )
                )
            except FileNotFoundError as error:
                exit_with_error(str(error))
            del ours[-1 if equals else -2 :]
        index += 1
    try:
        # Files come first, so that options override them wherever they are typed.
        own = parser.parse_args([*(f"--config={file}" for file in files), *ours])
        grid = Sweep(**{name: own[name] for name in Sweep.__dataclass_fields__})
        own.slurm = Slurm(**own.slurm)
        if own.retries < 0:
            raise ValueError(f"retries: {own.retries} must be at least 0")
        if own.parallel is not None and own.parallel < 1:
            raise ValueError(f"parallel: {own.parallel} must be at least 1")
    except (ArgumentError, ValueError, TypeError) as error:
        exit_with_error(clarify(str(error), sorted(option.lstrip("-") for option in known)))
    own.name = files[-1].stem if files else "sweep"
    own.parallel = own.parallel or max(1, _gpus())
    return own, grid, extra


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _checked_tasks(grid: Sweep, extra: Sequence[str], folder: Path) -> list[Task]:
    """Return the runs of the sweep after checking the options of each kind of run once.

    So a mistake is reported before the first run starts.
    """
    own = [
        option[2:]
        for action in _parser()._actions
        for option in action.option_strings
        if option.startswith("--")
    ]
    try:
        tasks = grid.tasks([*_QUIET, *extra])
        for task in {
            (task.recipe, task.options[3], task.levels, task.like): task for task in tasks
        }.values():
            if task.levels:
                planned(["--levels", str(task.levels), *task.options], own)
            elif task.like:
                # The width itself requires a pruning, so it is computed when the run starts.
                width_of(task)
            else:
                parse_fit(list(task.options), own)
        check_existing_runs(folder, tasks)
    except (ValueError, FileNotFoundError) as error:
        exit_with_error(str(error))
    return tasks


def _show(task: Task, folder: Path, ended: bool) -> None:
    """Print a run and its commands; WIDTH stands for a width that is computed later."""
    print(f"{task.name}{' (finished)' if ended else ''}", flush=True)
    if not ended:
        more = (f"--model.network.{width_of(task)}", "WIDTH") if task.like else ()
        for command in (task.train(folder, more=more), task.test(folder)):
            print(f"  synflow_pl {shlex.join(command)}")


# -- one run, in a separate process


@dataclass(frozen=True)
class _Job:
    folder: Path
    task: Task
    share: int
    """Number of runs at a time on this machine, each with its share of the cores and one GPU."""

    @property
    def log(self) -> Path:
        return self.folder / "logs" / f"{self.task.name}.log"


def _launched(jobs: Sequence[_Job], own: Namespace) -> Iterator[tuple[_Job, int]]:
    if own.launcher == "local":
        yield from run_locally(_work, jobs, own.parallel, _PRELOAD)
        return
    try:
        yield from run_on_slurm(_work, jobs, own.slurm, jobs[0].folder / "slurm", _PRELOAD)
    except LauncherError as error:
        exit_with_error(str(error))


def _work(job: _Job, place: int) -> None:
    """Make one run in a separate process, with its output redirected to the run's log."""
    import torch

    # Ctrl-C must end the process without a KeyboardInterrupt, which would be logged as an error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with open(job.log, "a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    if job.share > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // job.share))
        if gpus := _visible_gpus():
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    sys.exit(_attempt(job))


def _attempt(job: _Job) -> int:
    """Train and test one run, resuming it if it was stopped, and return an exit status."""
    folder, task = job.folder, job.task
    run_folder = folder / "lightning_logs" / task.name
    with lock_run(folder, task) as free:
        if not free:
            return _BUSY
        # Another machine may have finished the run in the meantime.
        if accuracy(folder, task) is not None:
            return 0
        try:
            _train_and_test(folder, task, run_folder)
        except SIGTERMException:
            return _STOPPED
        except SystemExit as left:
            if left.code in (0, _STOPPED):
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
        multishot(task.train(folder)[1:])
        run(task.test(folder))
        return
    more, baseline = dense_baseline(task) if task.like else ((), None)
    resumable = _is_resumable(run_folder)
    if run_folder.exists() and not resumable:
        shutil.rmtree(run_folder)
    session = run(task.train(folder, resumable, more))
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
        else [str(index) for index in range(_gpus())]
    )


# -- messages


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


def _reason(job: _Job, status: int) -> str:
    """Return in one line why a run has no result."""
    if status < 0 or status == _STOPPED:
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
