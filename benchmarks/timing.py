"""What the benchmarks of speed share: contenders timed in turn, and the peak of memory.

A busy machine slows all contenders alike if they are timed in turn, so what counts is the median of
the ratios, run by run. With one thread the processor's own seconds are told beside the clock's: on
a machine that others use they are the steadier ones.
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

__all__ = ["Seconds", "environment", "give_back_at_once", "grown", "in_turn", "reset_peak", "table"]

# Of malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


class Seconds(NamedTuple):
    """How long one run took."""

    wall: float
    cpu: float


def environment() -> str:
    """Where and on what this is measured."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{kind_of_machine()}, {torch.get_num_threads()} threads{load}"


def in_turn(
    contenders: Mapping[str, Callable[[], float | None]], runs: int
) -> dict[str, list[Seconds]]:
    """Time each contender ``runs`` times, in turn, after one run of each that does not count.

    Args:
        contenders: by name. One that does only a share of the work returns by how much its seconds
            are to be multiplied.
        runs: at least 1.
    """
    taken: dict[str, list[Seconds]] = {name: [] for name in contenders}
    for index in range(runs + 1):
        for name, contender in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            times = contender() or 1.0
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if index:
                taken[name].append(
                    Seconds(
                        (time.perf_counter() - wall) * times, (time.process_time() - cpu) * times
                    )
                )
    return taken


def table(taken: Mapping[str, list[Seconds]], against: str, title: str = "") -> None:
    """Print the medians of all contenders, and of their ratios to one of them with the least and
    the most.
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
    """Start counting the peak of this process's memory anew; returns the bytes held now. Linux with
    glibc.

    Memory that is free, but that the allocator would keep for what comes, is given back first: it
        is not held.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def give_back_at_once() -> None:
    """Let the allocator keep nothing of what is freed in this process, so that what it holds is
    what is in use. Linux with glibc.
    """
    for parameter, size in ((_MMAP_THRESHOLD, 1 << 16), (_TRIM_THRESHOLD, 1 << 17)):
        if not ctypes.CDLL(None).mallopt(parameter, size):
            raise RuntimeError("this allocator takes no such settings")


def grown(held: int) -> int:
    """Bytes of the peak since :func:`reset_peak` above what it returned."""
    return _status("VmHWM") - held


def _status(field: str) -> int:
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )
    return int(line.split()[1]) * 1024
