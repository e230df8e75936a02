"""Functions shared by the benchmarks: timing in turn, and peak memory.

Contenders are timed in turn, so that a busy machine slows them alike, and compared by the median of
the ratios run by run. With one thread, CPU seconds are reported beside wall-clock seconds: on a
shared machine they vary less.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from synflow_pl.runs.environment import environment as kind_of_machine

__all__ = [
    "Seconds",
    "environment",
    "give_back_at_once",
    "grown",
    "in_turn",
    "now",
    "reset_peak",
    "since",
    "table",
]

# Parameters of mallopt in malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


class Seconds(NamedTuple):
    """Duration of one run in wall-clock seconds and CPU seconds."""

    wall: float
    cpu: float


def now() -> Seconds:
    """Return the time by both clocks, after the work of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Seconds(time.perf_counter(), time.process_time())


def since(began: Seconds, times: float = 1.0) -> Seconds:
    """Return the duration since a result of :func:`now`, multiplied by ``times``."""
    ended = now()
    return Seconds((ended.wall - began.wall) * times, (ended.cpu - began.cpu) * times)


def environment() -> str:
    """Return one line that describes the machine, the number of threads and the load."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{kind_of_machine()}, {torch.get_num_threads()} threads{load}"


def in_turn(
    contenders: Mapping[str, Callable[[], float | None]], runs: int
) -> dict[str, list[Seconds]]:
    """Time each contender ``runs`` times, in turn, after one untimed run of each.

    Args:
        contenders: Functions to time, by name. A function that does only a fraction of the work
            returns the factor by which its seconds are multiplied.
        runs: Number of timed runs, at least 1.
    """
    taken: dict[str, list[Seconds]] = {name: [] for name in contenders}
    for index in range(runs + 1):
        for name, contender in contenders.items():
            began = now()
            times = contender() or 1.0
            if index:
                taken[name].append(since(began, times))
    return taken


def table(taken: Mapping[str, list[Seconds]], against: str, title: str = "") -> None:
    """Print the median times, and the median, least and greatest ratio to one contender.

    Args:
        taken: Times of the runs of each contender.
        against: Contender that the ratios refer to.
        title: Heading of the first column.
    """
    print(f"{title:<34}{'s (clock)':>11}{'s (CPU)':>10}   ratio by clock        ratio by CPU")
    for name, runs in taken.items():
        columns = []
        for clock in (0, 1):
            ratios = [
                run[clock] / max(other[clock], 1e-9)
                for run, other in zip(runs, taken[against], strict=True)
            ]
            columns.append(
                f"{statistics.median(ratios):6.3f} ({min(ratios):.2f}-{max(ratios):.2f})"
            )
        wall, cpu = (statistics.median(run[clock] for run in runs) for clock in (0, 1))
        print(f"  {name:<32}{wall:>11.4f}{cpu:>10.4f}   {columns[0]:<22}{columns[1]}", flush=True)


def reset_peak() -> int:
    """Reset the peak memory of this process, and return the bytes that it uses (Linux with glibc).

    Free memory that the allocator keeps is released first, so that it does not count as used.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def give_back_at_once() -> None:
    """Make the allocator release freed memory at once (Linux with glibc).

    The memory of the process is then the memory in use.
    """
    for parameter, size in ((_MMAP_THRESHOLD, 1 << 16), (_TRIM_THRESHOLD, 1 << 17)):
        if not ctypes.CDLL(None).mallopt(parameter, size):
            raise RuntimeError("this allocator takes no such settings")


def grown(held: int) -> int:
    """Return the peak memory since :func:`reset_peak`, minus the bytes that it returned.

    Args:
        held: Result of :func:`reset_peak`.
    """
    return _status("VmHWM") - held


def _status(field: str) -> int:
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )
    return int(line.split()[1]) * 1024
