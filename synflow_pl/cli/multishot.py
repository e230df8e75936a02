"""Prune and train in several levels, each a run with the previous masks and rewound weights."""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from jsonargparse import Namespace

from synflow_pl.cli.command import Command, parse_fit
from synflow_pl.cli.errors import exit_with_error, import_class
from synflow_pl.cli.options import Options
from synflow_pl.cli.resume import OWNER
from synflow_pl.io import lock_file, make_folder
from synflow_pl.masks import Masks
from synflow_pl.runs import CONFIG, MACHINES
from synflow_pl.runs.training_record import RECORD
from synflow_pl.training.rewinding import REWIND, ended, level_density, mark_ended, resumable

__all__ = ["multishot", "planned"]

# Options that may differ between the command that started a run and the one that resumes it.
_START_OPTIONS = ("config", "ckpt_path")
_RUN_FILES = {
    CONFIG,
    OWNER,
    MACHINES,
    RECORD,
    "metrics.csv",
    "diagnosis.csv",
    "diagnosis.json",
    "masks.safetensors",
    "checkpoints",
}
_RUN_FILES |= {REWIND, "rewind.unfinished"}
"""Files of a run that was stopped; a folder with other files is not removed."""


def multishot(args: list[str]) -> None:
    """Train level 0 dense and each further level sparser; the last has the density of the recipe.

    To resume after it was stopped, run the command again: levels that have ended are skipped.

    Args:
        args: ``--levels L``, ``--rewind K``, and options of ``fit`` for every level.
    """
    own, command = planned(args)
    base = command.options.get("run") or f"{command.default_name}-rewind{own.rewind}"
    root = command.root / "lightning_logs"
    density = command.options.pruning.density
    runs = [root / f"{base}-level{level}of{own.levels}" for level in range(own.levels + 1)]
    with _locked(root, base) as lock:
        for level, run in enumerate(runs):
            density_of_level = float(level_density(density, level, own.levels))
            level_options = [
                *own.options,
                "--run",
                run.name,
                "--pruning.density",
                str(density_of_level),
            ]
            if level == 0:
                level_options += [
                    "--trainer.callbacks+=synflow_pl.training.RewindPoint",
                    f"--trainer.callbacks.epoch={own.rewind}",
                ]
                start_options = []
            else:
                level_options += ["--pruning.score_from", str(runs[level - 1])]
                start_options = ["--ckpt_path", str(runs[0] / REWIND)]
            _train(run, level_options, start_options, own.rewind if level == 0 else None, lock)
            mark_ended(run, level, own.levels, own.rewind, density_of_level)
    print(f"\n{_table(runs)}")


def planned(args: list[str], own_options: Sequence[str] = ()) -> tuple[argparse.Namespace, Command]:
    """Parse the options of ``multishot``.

    A mistake is one sentence on standard error and exit status 2.

    Args:
        args: Arguments after ``multishot`` on the command line.
        own_options: Names of the calling command's own options, for suggestions in errors.

    Returns:
        The own options ``levels`` and ``rewind``, with the options of ``fit`` in ``options``; and
        the parsed options of ``fit``.
    """
    parser = Options(
        "multishot", usage="%(prog)s --levels L [--rewind K] [OPTIONS OF fit]", description=__doc__
    )
    parser.add_argument(
        "--levels",
        type=int,
        required=True,
        help="number of prunings, each followed by a training, at least 1",
    )
    parser.add_argument(
        "--rewind",
        type=int,
        default=0,
        help="epoch of level 0 to which kept weights are rewound; 0 is initialisation (default)",
    )
    own, options = parser.parse_known_args(args)
    own.options = options
    if own.levels < 1:
        exit_with_error(f"levels: {own.levels} must be at least 1")
    command = parse_fit(own.options, [*parser.names, *own_options])
    _check(command.options, own.rewind)
    return own, command


def _check(options: Namespace, rewind: int) -> None:
    """Exit with an error for options that are incompatible with levels, before the first level."""
    pruning, trainer = options.pruning, options.trainer
    if pruning.pruner is None or pruning.density is None:
        exit_with_error(
            "multishot needs a pruner and --pruning.density, which the last level will have; "
            "num_kept cannot be used here"
        )
    if import_class(pruning.pruner.class_path).end_fraction is not None:
        exit_with_error(
            f"pruning.pruner: {pruning.pruner.class_path} prunes while it trains, and multishot "
            "between trainings; choose another"
        )
    given = [name for name in (("at_epoch", "masks_path", "score_from")) if pruning.get(name)]
    given += ["sanity"] if pruning.sanity in ("shuffle", "reinitialise") else []
    if given or options.get("ckpt_path"):
        exit_with_error(
            f"{f'pruning.{given[0]}' if given else 'ckpt_path'} cannot go with multishot, which "
            "sets it from level to level"
        )
    if rewind < 0 or (trainer.max_epochs not in (None, -1) and rewind >= trainer.max_epochs):
        exit_with_error(
            f"rewind: {rewind} must be an epoch of the training, at least 0 and less than "
            f"max_epochs={trainer.max_epochs}"
        )


def _train(
    run: Path, options: list[str], start_options: list[str], rewind: int | None, lock: IO[str]
) -> None:
    """Train one level, or resume it, or skip it if it has ended."""
    if run.exists():
        _compare(run, options)
        if ended(run):
            print(f"{run.name} has ended and is left as it is.")
            return
        try:
            checkpoint = resumable(run, rewind)
        except ValueError as error:
            exit_with_error(str(error))
        if checkpoint is not None:
            start_options = ["--ckpt_path", str(run)]
        else:
            _clear(run)
    status = fit(["fit", *options, *start_options], lock)
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        name = signal.Signals(status - 128).name
        exit_with_error(
            f"stopped by {name} in {run.name}; the same multishot command resumes there, without "
            "--ckpt_path",
            status,
        )
    if status != 0:
        raise SystemExit(status)


def _clear(run: Path) -> None:
    """Remove a run that was stopped before its first checkpoint.

    A folder that contains any other file is not removed, and the command exits with an error.
    """
    unknown = [
        path.name
        for path in run.iterdir()
        if path.name not in _RUN_FILES and not path.name.startswith("events.out.tfevents")
    ]
    if unknown:
        exit_with_error(
            f"{run} is no run that was stopped: there is {unknown[0]} in it; move it away, or give "
            "another --run"
        )
    shutil.rmtree(run)


def fit(args: list[str], lock: IO[str]) -> int:
    """Run ``synflow_pl`` in a separate process and return its exit status.

    So every level starts from the same state and may itself start processes. Ctrl-C reaches the
    process too, and SIGTERM is forwarded; the process is then waited for, since it writes a
    checkpoint before it ends.

    Args:
        args: Subcommand and options.
        lock: Open lock file, inherited by the process.

    Returns:
        The exit status; after a signal to either process, 128 plus the signal's number.
    """
    received: list[int] = []
    process = subprocess.Popen(
        [sys.executable, "-m", "synflow_pl", *args], pass_fds=[lock.fileno()]
    )

    def handle(number: int, _: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGTERM:
            process.send_signal(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        return 128 + received[0]
    return status if status >= 0 else 128 - status


def _compare(run: Path, options: list[str]) -> None:
    """Exit with an error if a run was started with other options."""
    if not (run / CONFIG).is_file():
        return
    was, now = (_flat(parse_fit(args)) for args in (["--config", str(run / CONFIG)], options))
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            exit_with_error(
                f"{run} was begun with {key}={was.get(key)}, not {now.get(key)}; give the same "
                "options to resume it, or another --run to begin anew"
            )


def _flat(command: Command) -> dict[str, str]:
    """Return every option as text, by name, except those that say where training starts."""
    flat: dict[str, Any] = vars(command.options.as_flat())
    # A tuple is a list once it has been written to a configuration file and read again.
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in flat.items()}
    return {
        key: str(value) for key, value in plain.items() if key.split(".")[0] not in _START_OPTIONS
    }


@contextmanager
def _locked(root: Path, base: str) -> Iterator[IO[str]]:
    """Hold a lock on the levels, so that no other process works on them.

    The processes of the levels inherit the lock, since they outlive this process if it is killed.
    """
    make_folder(root, "--trainer.default_root_dir")
    # SystemExit, unlike the default action, lets `fit` end its process as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    path = root / f".{base}.lock"
    with lock_file(path) as lock:
        if lock is None:
            exit_with_error(
                f"another process works on {root / base}; wait for it or end it, or give another "
                "--run"
            )
        yield lock
        os.unlink(path)


def _table(runs: list[Path]) -> str:
    """Return a table of the levels with density and last validation accuracy in metrics.csv."""
    rows = [("run", "weights", "density", "val/accuracy")]
    for run in runs:
        masks = Masks.load(run / "masks.safetensors")
        with open(run / "metrics.csv", newline="") as file:
            accuracies = [
                row["val/accuracy"] for row in csv.DictReader(file) if row.get("val/accuracy")
            ]
        rows.append(
            (
                os.path.relpath(run),
                f"{masks.kept:,}",
                f"{masks.density:.6g}",
                f"{float(accuracies[-1]):.2%}" if accuracies else "",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}"
        + "".join(f"  {cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )
