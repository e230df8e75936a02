"""Resume: which run a command goes on in, who works in a run, and what of a command a checkpoint
overrules.
"""

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
    "begin_again",
    "differing",
    "go_on",
    "missing_files",
    "own",
    "replaced",
    "settings",
    "settings_of",
]

OWNER = ".owner"
"""In a run: the SLURM job that works in it, if one does, and the lock that the process holds."""
# Says where to start and where to write, not what to compute.
_OF_A_START = ("config", "ckpt_path", "run")
# What a training writes into its run, but for its configuration.
_OF_A_TRAINING = ["metrics.csv", "diagnosis.csv", "diagnosis.json", MACHINES, RECORD]
_OF_A_TRAINING += ["masks.safetensors", "events.out.tfevents.*", "rewind.ckpt"]
_held: list[IO[str]] = []


def own(run: Path) -> bool:
    """Work in a run until this process ends; false if another one does. It cannot be forgotten: a
    killed process owns nothing.
    """
    file = open(run / OWNER, "a+")  # noqa: SIM115  # it has to stay open
    try:
        # Of the process alone: workers that were forked and outlive it for some seconds do not keep
        # it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        return False
    file.truncate(0)
    file.write(os.environ.get("SLURM_JOB_ID", ""))
    file.flush()
    _held.append(file)
    return True


def _job(run: Path) -> str:
    """The SLURM job that works, or worked last, in a run; empty if none did."""
    return (run / OWNER).read_text() if (run / OWNER).is_file() else ""


def settings(text: str) -> dict[str, Any]:
    """What a configuration says to compute, by option."""
    return {
        key: value
        for key, value in _flat(yaml.safe_load(text) or {})
        if key.partition(".")[0] not in _OF_A_START
    }


def settings_of(run: Path) -> dict[str, Any]:
    """What a run computes."""
    return settings((run / CONFIG).read_text())


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Options in which two configurations differ."""
    return [key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]


def replaced(now: Mapping[str, Any], was: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return a configuration in which parts are those of another one.

    A pruner and a schedule are one part each: their arguments belong to their class.

    Args:
        now: configuration as config.yaml holds it.
        was: configuration that parts are taken from.
        keys: options to take, by full name.
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
    """Return the files of masks or trained weights that the options of pruning name and that do not
    exist any more.
    """
    return [
        str(pruning[name])
        for name in ("masks_path", "score_from")
        if pruning.get(name) and not Path(pruning[name]).exists()
    ]


def _newest(run: Path) -> float:
    """When its last checkpoint was written; 0 if there is none."""
    try:
        return find_checkpoint(run).stat().st_mtime
    except FileNotFoundError:
        return 0


def go_on(
    runs: Path, wanted: Mapping[str, Any], name: str | None, *, asked: bool
) -> tuple[Path | None, list[str]]:
    """The run to go on in, which this process then works in.

    Runs qualify that compute what is wanted, that no living process works in, and that no other
    SLURM job has worked in: it may be waiting to go on. Among them the one with the newest
    checkpoint is taken.

    Args:
        runs: folder of the runs.
        wanted: settings of this command.
        name: of the run, if the command has one; ``name-2`` and so on are meant too.
        asked: by ``--ckpt_path last``; else a requeued SLURM job is looking for the run that it
            began.

    Returns:
        The run, if there is one, and remarks about runs that did not qualify.
    """
    job, remarks = os.environ.get("SLURM_JOB_ID", ""), []
    named = re.compile(rf"{re.escape(name)}(-\d+)?" if name else r".*")
    found = [path.parent for path in runs.glob(f"*/{CONFIG}") if named.fullmatch(path.parent.name)]
    same = [run for run in found if settings_of(run) == wanted]
    for run in sorted(same, key=_newest, reverse=True):
        whose = _job(run)
        if whose == job or (asked and not whose):
            if own(run):
                return run, []
            remarks.append(f"{run} is being worked in by another process")
        elif asked:
            remarks.append(
                f"{run} belongs to SLURM job {whose}; to go on in it all the same: --run {run.name} --ckpt_path {run}"
            )
    return None, remarks


def begin_again(run: Path) -> None:
    """Remove what a training left that was killed before its first checkpoint."""
    for pattern in _OF_A_TRAINING:
        for path in run.glob(pattern):
            path.unlink()
    remove_partial_files(run)


def write_config(run: Path, text: str) -> None:
    """Write the configuration of a run."""
    with atomic_write(run / CONFIG) as file:
        file.write(text.encode())
