"""Launchers: where the runs of a sweep are worked on. Each takes a function and its arguments and
yields these as they come to an end.

On this machine every run is a process of its own, forked from a server (multiprocessing's) that has
imported torch and Lightning once
and done nothing else: a run starts in a moment instead of the seconds that the imports take, and
yet none sees anything of another. On SLURM every run is a job of an array, by submitit.
"""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["LauncherError", "Slurm", "here", "on_slurm"]

Item = TypeVar("Item")
_BETWEEN_LOOKS = 2.0
"""Seconds between two looks at SLURM's queue."""


class LauncherError(RuntimeError):
    """Why SLURM takes no jobs, in a sentence."""


@dataclass(frozen=True)
class Slurm:
    """What is asked of SLURM for each run.

    Args:
        partition: to submit to; by default the cluster's own.
        gpus: for each run, at least 0.
        cpus: for each run, at least 1.
        time: minutes for each run, at least 1. One that is cut off is put back into the queue, up
            to three times (submitit's number), and goes on from its last checkpoint.
        width: runs at a time, at least 1.
    """

    partition: str | None = None
    gpus: int = 0
    cpus: int = 1
    time: int = 60
    width: int = 100

    def __post_init__(self) -> None:
        for name, least in (("gpus", 0), ("cpus", 1), ("time", 1), ("width", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"slurm.{name}: {getattr(self, name)} must be at least {least}")


def here(
    work: Callable[[Item, int], None], items: Sequence[Item], parallel: int, preload: Sequence[str]
) -> Iterator[tuple[Item, int]]:
    """Work on this machine, ``parallel`` at a time, each in a process of its own.

    Args:
        work: importable by name; called with an item and with which of the ``parallel`` places it
            has, counted from 0.
        items: in the order in which they begin.
        parallel: at least 1.
        preload: modules that the processes find imported.

    Yields:
        Each item as it ends, and the exit status of its process, negative for the signal that ended
        it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    waiting, free = deque(items), deque(range(parallel))
    running: dict[Any, tuple[BaseProcess, Item, int]] = {}

    def fill() -> None:
        while free and waiting:
            item, place = waiting.popleft(), free.popleft()
            process = context.Process(target=work, args=(item, place))
            process.start()
            running[process.sentinel] = process, item, place

    # All in one thread: whoever starts a process asks after all others too, and of two threads that
    # ask after one that has just ended only one is told its exit status.
    try:
        fill()
        while running:
            ended = [running.pop(sentinel) for sentinel in wait(list(running))]
            free.extend(place for *_, place in ended)
            fill()
            for process, item, _ in ended:
                process.join()
                yield item, process.exitcode or 0
    finally:
        # Only if this is left early: what has begun ends with us.
        for process, *_ in running.values():
            process.terminate()


def on_slurm(
    work: Callable[[Item, int], None],
    items: Sequence[Item],
    asked: Slurm,
    folder: Path,
    preload: Sequence[str],
) -> Iterator[tuple[Item, int]]:
    """Work in one job array of SLURM, a job each.

    That a job is over is read from SLURM's queue, where it no longer is, so that no accounting
    database is needed.

    Args:
        work: as for :func:`here`; its place is 0.
        items: one job each.
        asked: of SLURM.
        folder: for the jobs' files, shared by all machines.
        preload: as for :func:`here`.

    Yields:
        Each item as its job leaves the queue, and 0: what came of it is to be read from its run.

    Raises:
        Refused: if submitit is not installed, if there is no SLURM here, or if it does not take the
            jobs.
    """
    try:
        import submitit
    except ImportError as error:
        raise LauncherError(
            "--launcher slurm needs submitit, an extra: pip install synflow_pl[slurm]"
        ) from error
    missing = [command for command in ("sbatch", "srun", "squeue") if shutil.which(command) is None]
    if missing:
        raise LauncherError(
            f"--launcher slurm: there is no {missing[0]} here; start the sweep where jobs are"
            " submitted, or leave the option out"
        )

    class Job(submitit.helpers.Checkpointable):
        """Cut off by the time limit or preempted, a job is put back into the queue by submitit; the
        run knows how far it is.

        The run has a process of its own here too: signals that submitit answers must not look like
            an error of the run.
        """

        def __call__(self, item: Item) -> None:
            for _ in here(work, [item], 1, preload):
                pass

    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(
        job_name="synflow_pl",
        time=asked.time,
        cpus_per_task=asked.cpus,
        array_parallelism=asked.width,
        **({"partition": asked.partition} if asked.partition else {}),
        **({"gpus_per_node": asked.gpus} if asked.gpus else {}),
    )
    try:
        jobs = executor.map_array(Job(), items)
    except submitit.core.utils.FailedJobError as error:
        raise LauncherError(
            f"SLURM does not take the jobs: {' '.join(str(error).split())}"
        ) from error
    left = {job.job_id: item for job, item in zip(jobs, items, strict=True)}
    try:
        while left:
            time.sleep(_BETWEEN_LOOKS)
            queued = _queued()
            for name in [] if queued is None else [name for name in left if name not in queued]:
                yield left.pop(name), 0
    finally:
        # Only if this is left early.
        for job in jobs:
            if job.job_id in left:
                job.cancel()


def _queued() -> set[str] | None:
    """Jobs of ours that wait, run or are being tidied away, by the name that submitit has for them.

    ``None`` if SLURM does not answer, as a busy one does now and then; jobs are not over because of
    that.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%F_%K"]
    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    if answer.returncode:
        return None
    return {
        name.removesuffix("_N/A") for name in answer.stdout.split()
    }  # one item alone is a job, not an array
