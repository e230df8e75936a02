"""Find the run that a command resumes, lock it, and compare its settings with the command's."""

from __future__ import annotations

import copy
import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from synflow_pl.io import atomic_write, remove_partial_files
from synflow_pl.runs import CONFIG, MACHINES
from synflow_pl.runs.training_record import RECORD
from synflow_pl.training import find_checkpoint

__all__ = [
    "OWNER",
    "acquire_run",
    "differing_options",
    "find_run_to_resume",
    "missing_files",
    "remove_training_files",
    "replace_options",
    "settings",
    "settings_of",
]

OWNER = ".owner"
"""Lock file of a run, which contains the id of the SLURM job that writes the run, if any."""
# Options that say where to start and where to write, not what to compute.
_START_OPTIONS = ("config", "ckpt_path", "run")
# Files that training writes into its run, except its configuration and checkpoints.
_TRAINING_FILES = ["metrics.csv", "diagnosis.csv", "diagnosis.json", MACHINES, RECORD]
_TRAINING_FILES += ["masks.safetensors", "events.out.tfevents.*", "rewind.ckpt"]
_held: list[IO[str]] = []


def acquire_run(run: Path) -> bool:
    """Lock a run until this process ends, and return whether the lock was acquired.

    The lock is released when the process ends in any way, so a killed process leaves none behind.

    Args:
        run: Folder of the run.

    Returns:
        False if another process holds the lock.
    """
    file = open(run / OWNER, "a+")  # noqa: SIM115  # it has to stay open
    try:
        # Unlike flock (synflow_pl.io.lock_file), lockf's locks are not inherited by forked workers,
        # which may outlive the process.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        return False
    file.truncate(0)
    file.write(os.environ.get("SLURM_JOB_ID", ""))
    file.flush()
    _held.append(file)
    return True


def _job_of(run: Path) -> str:
    """Return the id of the SLURM job that last locked a run, or "" if it was not a SLURM job."""
    return (run / OWNER).read_text() if (run / OWNER).is_file() else ""


def settings(text: str) -> dict[str, Any]:
    """Return the options of a configuration that determine what is computed.

    Args:
        text: Configuration as YAML.

    Returns:
        Values by full name of the option, such as ``pruning.density``.
    """
    return {
        key: value
        for key, value in _flat(yaml.safe_load(text) or {})
        if key.partition(".")[0] not in _START_OPTIONS
    }


def settings_of(run: Path) -> dict[str, Any]:
    """Return the options of a run that determine what is computed, by full name."""
    return settings((run / CONFIG).read_text())


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing_options(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of the options in which two configurations differ."""
    return [key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]


def replace_options(
    now: Mapping[str, Any], was: Mapping[str, Any], keys: Sequence[str]
) -> dict[str, Any]:
    """Return a configuration with some options replaced by those of another one.

    A pruner, an optimiser or a schedule is replaced as a whole, since its arguments belong to its
    class.

    Args:
        now: Configuration to change, as in config.yaml.
        was: Configuration that the options are taken from.
        keys: Full names of the options to take.
    """
    content: dict[str, Any] = copy.deepcopy(dict(now))
    for key in keys:
        parts = key.split(".")
        if (
            whole := next(
                (
                    index
                    for index, part in enumerate(parts)
                    if part in ("pruner", "optimizer", "scheduler")
                ),
                None,
            )
        ) is not None:
            parts = parts[: whole + 1]
        target, source = content, dict(was)
        for part in parts[:-1]:
            target, source = target[part], source.get(part) or {}
        if parts[-1] in source:  # an older version may not have had the option
            target[parts[-1]] = copy.deepcopy(source[parts[-1]])
    return content


def missing_files(pruning: Mapping[str, Any]) -> list[str]:
    """Return the files of masks or trained weights in the options of pruning that do not exist."""
    return [
        str(pruning[name])
        for name in ("masks_path", "score_from")
        if pruning.get(name) and not Path(pruning[name]).exists()
    ]


def _newest(run: Path) -> float:
    """Return the time when the last checkpoint was written, or 0 if there is none."""
    try:
        return find_checkpoint(run).stat().st_mtime
    except FileNotFoundError:
        return 0


def find_run_to_resume(
    runs: Path, wanted: Mapping[str, Any], name: str | None, *, requested: bool
) -> tuple[Path | None, list[str]]:
    """Find the run to resume and lock it for this process.

    A run qualifies if it has the settings of the command, no process holds its lock, and it does
    not belong to another SLURM job, which may be waiting to resume it. Of several such runs, the
    one with the newest checkpoint is returned.

    Args:
        runs: Folder of the runs.
        wanted: Settings of this command.
        name: Name of the run, if the command gives one; ``NAME-2`` and so on match as well.
        requested: Whether the command has ``--ckpt_path last``; otherwise a requeued SLURM job
            looks for the run that it began.

    Returns:
        The run, or ``None``; and remarks about runs that did not qualify.
    """
    job, remarks = os.environ.get("SLURM_JOB_ID", ""), []
    named = re.compile(rf"{re.escape(name)}(-\d+)?" if name else r".*")
    found = [path.parent for path in runs.glob(f"*/{CONFIG}") if named.fullmatch(path.parent.name)]
    same = [run for run in found if settings_of(run) == wanted]
    for run in sorted(same, key=_newest, reverse=True):
        whose = _job_of(run)
        if whose == job or (requested and not whose):
            if acquire_run(run):
                return run, []
            remarks.append(f"{run} is being worked in by another process")
        elif requested:
            remarks.append(
                f"{run} belongs to SLURM job {whose}; to resume it all the same: --run {run.name} "
                f"--ckpt_path {run}"
            )
    return None, remarks


def remove_training_files(run: Path) -> None:
    """Remove the files of training that was killed before its first checkpoint."""
    for pattern in _TRAINING_FILES:
        for path in run.glob(pattern):
            path.unlink()
    remove_partial_files(run)


def write_config(run: Path, text: str) -> None:
    """Write config.yaml into the folder of a run, atomically."""
    with atomic_write(run / CONFIG) as file:
        file.write(text.encode())
