"""Launchers: execute the runs of a sweep on this machine or on a SLURM cluster.

Each launcher takes a function and a list of items, calls the function on every item, and yields the
items as their calls end.

On this machine every call has a process of its own, forked from a server (multiprocessing's
forkserver) that has imported torch and Lightning and done nothing else. A run starts within a
moment instead of the seconds that the imports take, and runs share no state. On SLURM every call is
a job of a job array, submitted through submitit.
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

__all__ = ["LauncherError", "Slurm", "run_locally", "run_on_slurm"]

Item = TypeVar("Item")
_POLL_INTERVAL = 2.0
"""Seconds between two queries of SLURM's queue."""


class LauncherError(RuntimeError):
    """Raised if SLURM does not accept the jobs; the message is one sentence with the reason."""


@dataclass(frozen=True)
class Slurm:
    """Resources that each run requests from SLURM.

    Args:
        partition: Partition that jobs are submitted to; ``None`` is the default of the cluster.
        gpus: GPUs of each run, at least 0.
        cpus: CPU cores of each run, at least 1.
        time: Time limit of each run in minutes, at least 1. A run that reaches it is queued again,
            up to three times (the default of submitit), and resumes from its last checkpoint.
        width: Largest number of runs at the same time, at least 1.
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


def run_locally(
    work: Callable[[Item, int], None], items: Sequence[Item], parallel: int, preload: Sequence[str]
) -> Iterator[tuple[Item, int]]:
    """Call a function on every item on this machine, each call in a process of its own.

    Args:
        work: Function that can be imported by name; called with an item and the index of its slot,
            in 0 ... ``parallel`` - 1.
        items: Items in the order in which their processes start.
        parallel: Largest number of processes at the same time, at least 1.
        preload: Names of the modules that the processes start with already imported.

    Yields:
        Each item when its process ends, and the exit status of the process: negative for the signal
        that ended it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    waiting, free = deque(items), deque(range(parallel))
    running: dict[Any, tuple[BaseProcess, Item, int]] = {}

    def fill() -> None:
        while free and waiting:
            item, slot = waiting.popleft(), free.popleft()
            process = context.Process(target=work, args=(item, slot))
            process.start()
            running[process.sentinel] = process, item, slot

    # All in one thread: starting a process also polls all others, and if two threads poll a process
    # that has just ended, only one of them gets its exit status.
    try:
        fill()
        while running:
            ended = [running.pop(sentinel) for sentinel in wait(list(running))]
            free.extend(slot for *_, slot in ended)
            fill()
            for process, item, _ in ended:
                process.join()
                yield item, process.exitcode or 0
    finally:
        # Processes are still running only if the generator is closed early; they end with it.
        for process, *_ in running.values():
            process.terminate()


def run_on_slurm(
    work: Callable[[Item, int], None],
    items: Sequence[Item],
    resources: Slurm,
    folder: Path,
    preload: Sequence[str],
) -> Iterator[tuple[Item, int]]:
    """Call a function on every item in a SLURM job array, one job per item.

    A job has ended when it is no longer in SLURM's queue, so no accounting database is needed.

    Args:
        work: Function as for :func:`run_locally`; the index of the slot is always 0.
        items: Items, one job for each.
        resources: Resources of each job.
        folder: Folder for the files of the jobs, on a file system that all machines share.
        preload: Names of modules to import, as for :func:`run_locally`.

    Yields:
        Each item when its job leaves the queue, and 0: the result has to be read from the run.

    Raises:
        LauncherError: If submitit is not installed, SLURM is not available on this machine, or
            SLURM does not accept the jobs.
    """
    try:
        import submitit
    except ImportError as error:
        raise LauncherError(
            "--launcher slurm needs the package submitit; pip install submitit"
        ) from error
    missing = [command for command in ("sbatch", "srun", "squeue") if shutil.which(command) is None]
    if missing:
        raise LauncherError(
            f"--launcher slurm: there is no {missing[0]} here; start the sweep where jobs are"
            " submitted, or leave the option out"
        )

    class Job(submitit.helpers.Checkpointable):
        """Run one item; submitit queues the job again after its time limit or a preemption.

        The run resumes from its own folder, so the job keeps no state. The run has a process of its
        own here too, so that a signal that submitit handles does not look like an error of the run.
        """

        def __call__(self, item: Item) -> None:
            for _ in run_locally(work, [item], 1, preload):
                pass

    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(
        job_name="synflow_pl",
        time=resources.time,
        cpus_per_task=resources.cpus,
        array_parallelism=resources.width,
        **({"partition": resources.partition} if resources.partition else {}),
        **({"gpus_per_node": resources.gpus} if resources.gpus else {}),
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
            time.sleep(_POLL_INTERVAL)
            queued = _queued()
            for name in [] if queued is None else [name for name in left if name not in queued]:
                yield left.pop(name), 0
    finally:
        # Jobs are still queued or running only if the generator is closed early.
        for job in jobs:
            if job.job_id in left:
                job.cancel()


def _queued() -> set[str] | None:
    """Return the submitit names of this user's jobs that are pending, running or completing.

    ``None`` if SLURM does not answer, which happens on a busy cluster and does not mean that jobs
    have ended.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%F_%K"]
    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    if answer.returncode:
        return None
    # A single item is a plain job, not an array: SLURM lists it with the task index N/A.
    return {name.removesuffix("_N/A") for name in answer.stdout.split()}
