"""Locks on the runs of a sweep, which keep two processes off one run and record its options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from synflow_pl.cli.sweep_commands import fit_line
from synflow_pl.io import lock_file
from synflow_pl.runs.sweep_grid import Task

__all__ = ["check_existing_runs", "lock_run"]


@contextmanager
def lock_run(folder: Path, task: Task) -> Iterator[bool]:
    """Hold an exclusive lock on a run until the block or the process ends.

    The lock holds on every machine that shares the folder, and is released even if the process is
    killed.

    Args:
        folder: Folder of the sweep.
        task: Run of the sweep.

    Yields:
        ``True`` if the lock was acquired, ``False`` if another process holds it.

    Raises:
        OSError: If the file system does not support locks.
    """
    path = _lock_path(folder, task)
    path.parent.mkdir(exist_ok=True)
    with lock_file(path) as note:
        if note is None:
            yield False
            return
        # The options of the run, which check_existing_runs reads when the sweep is restarted.
        note.seek(0)
        if note.read() != fit_line(task):
            note.truncate(0)
            note.write(fit_line(task))
            note.flush()
        yield True


def check_existing_runs(folder: Path, tasks: Sequence[Task]) -> None:
    """Check that runs that exist already belong to this sweep.

    Args:
        folder: Folder of the sweep.
        tasks: Runs of the sweep.

    Raises:
        ValueError: If a run was made with other options or not by a sweep; no file of it is
            changed.
    """
    for task in tasks:
        runs = [
            folder / "lightning_logs" / name
            for name in (task.name, f"{task.name}-level0of{task.levels}")
        ]
        run = next((run for run in runs if run.exists()), None)
        if run is None:
            continue
        note = _lock_path(folder, task)
        if not note.is_file():
            raise ValueError(
                f"{run} was not made by a sweep; move it away, or give another --folder"
            )
        was = note.read_text()
        if was != fit_line(task):
            raise ValueError(
                f"{run} was made with {was!r}, not with {fit_line(task)!r}; give the same"
                " options to resume it, or another --folder"
            )


def _lock_path(folder: Path, task: Task) -> Path:
    """Return the path of the lock file of a run, which also stores the options of the run."""
    return folder / ".sweep" / task.name
