"""The multishot command: one ordinary run after another, each started from the masks of the one
before and from rewound weights.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
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

from synflow_pl.cli.errors import exit_with_error, import_class
from synflow_pl.cli.main import CLI, _prepare, _quieten
from synflow_pl.cli.options import Options
from synflow_pl.cli.resume import OWNER
from synflow_pl.io import make_folder
from synflow_pl.masks import Masks
from synflow_pl.runs import CONFIG, MACHINES
from synflow_pl.runs.training_record import RECORD
from synflow_pl.training.rewinding import REWIND, ended, level_density, mark_ended, resumable

__all__ = ["Plan", "multishot", "planned"]

# What differs between a run that was begun and the same run gone on with.
_OF_A_START = ("config", "ckpt_path")
_OF_A_RUN = {
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
_OF_A_RUN |= {REWIND, "rewind.unfinished"}


def multishot(args: list[str]) -> None:
    """Train level 0 dense and then each level sparser, to the density of the recipe at the last.

    Started again with the same command it goes on where it was stopped: levels that have ended are
        left alone.

    Args:
        args: ``--levels L``, ``--rewind K``, and options of ``fit`` that every level gets.
    """
    own, plan = planned(args)
    base = plan.options.get("run") or f"{plan.default_name}-rewind{own.rewind}"
    root = Path(plan.options.trainer.get("default_root_dir") or ".") / "lightning_logs"
    density = plan.options.pruning.density
    runs = [root / f"{base}-level{level}of{own.levels}" for level in range(own.levels + 1)]
    with _alone(root, base) as lock:
        for level, run in enumerate(runs):
            its_density = float(level_density(density, level, own.levels))
            its = [*own.options, "--run", run.name, "--pruning.density", str(its_density)]
            if level == 0:
                its += [
                    "--trainer.callbacks+=synflow_pl.training.RewindPoint",
                    f"--trainer.callbacks.epoch={own.rewind}",
                ]
                start = []
            else:
                its += ["--pruning.score_from", str(runs[level - 1])]
                start = ["--ckpt_path", str(runs[0] / REWIND)]
            _train(run, its, start, own.rewind if level == 0 else None, lock)
            mark_ended(run, level, own.levels, own.rewind, its_density)
    print(f"\n{_table(runs)}")


def planned(args: list[str], own_options: Sequence[str] = ()) -> tuple[argparse.Namespace, Plan]:
    """The command's own options (``levels``, ``rewind``, and ``options``, those of ``fit``), and
    what those mean.

    What cannot be is a sentence on standard error and exit status 2.

    Args:
        args: what stands after ``multishot`` on the command line.
        own_options: names of options of a command that these levels are part of.
    """
    parser = Options(
        "multishot", usage="%(prog)s --levels L [--rewind K] [OPTIONS OF fit]", description=__doc__
    )
    parser.add_argument(
        "--levels",
        type=int,
        required=True,
        help="a number of cuts, each followed by a training, at least 1",
    )
    parser.add_argument(
        "--rewind",
        type=int,
        default=0,
        help="epoch of level 0 that survivors go back to; 0 is initialisation (default)",
    )
    own, options = parser.parse_known_args(args)
    own.options = options
    if own.levels < 1:
        exit_with_error(f"levels: {own.levels} must be at least 1")
    plan = Plan.of(own.options, [*parser.names, *own_options])
    _check(plan, own.rewind)
    return own, plan


def _check(plan: Plan, rewind: int) -> None:
    """Refuse what cannot go with levels, before the first of them."""
    pruning, trainer = plan.options.pruning, plan.options.trainer
    if pruning.pruner is None or pruning.density is None:
        exit_with_error(
            "multishot needs a pruner and --pruning.density, which the last level will have; num_kept cannot be used here"
        )
    if import_class(pruning.pruner.class_path).end_fraction is not None:
        exit_with_error(
            f"pruning.pruner: {pruning.pruner.class_path} prunes while it trains, and multishot between trainings; choose another"
        )
    given = [name for name in (("at_epoch", "masks_path", "score_from")) if pruning.get(name)]
    given += ["sanity"] if pruning.sanity in ("shuffle", "reinitialise") else []
    if given or plan.options.get("ckpt_path"):
        exit_with_error(
            f"{f'pruning.{given[0]}' if given else 'ckpt_path'} cannot go with multishot, which sets it from level to level"
        )
    if rewind < 0 or (trainer.max_epochs not in (None, -1) and rewind >= trainer.max_epochs):
        exit_with_error(
            f"rewind: {rewind} must be an epoch of the training, at least 0 and less than max_epochs={trainer.max_epochs}"
        )


def _train(
    run: Path, options: list[str], start: list[str], rewind: int | None, lock: IO[str]
) -> None:
    """Train one level, or what is left of it."""
    if run.exists():
        _compare(run, options)
        if ended(run):
            print(f"{run.name} has ended and is left as it is.")
            return
        try:
            found = resumable(run, rewind)
        except ValueError as error:
            exit_with_error(str(error))
        if found is not None:
            start = ["--ckpt_path", str(run)]
        else:
            _clear(run)
    status = fit(["fit", *options, *start], lock)
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        name = signal.Signals(status - 128).name
        exit_with_error(
            f"stopped by {name} in {run.name}; the same multishot command goes on there, without --ckpt_path",
            status,
        )
    if status != 0:
        raise SystemExit(status)


def _clear(run: Path) -> None:
    """Remove a run that was stopped before there was anything to go on from; nothing else that may
    bear its name.
    """
    strange = [
        path.name
        for path in run.iterdir()
        if path.name not in _OF_A_RUN and not path.name.startswith("events.out.tfevents")
    ]
    if strange:
        exit_with_error(
            f"{run} is no run that was stopped: there is {strange[0]} in it; move it away, or give another --run"
        )
    shutil.rmtree(run)


def fit(args: list[str], lock: IO[str]) -> int:
    """Run ``synflow_pl`` in a process of its own, so that every level starts alike and may start
    further processes.

    Ctrl-C reaches that process too, and SIGTERM is passed on to it; it is waited for then, since it
    writes a checkpoint before it ends.

    Args:
        args: subcommand and options.
        lock: open file that the process holds as well.

    Returns:
        Its exit status, 128 and the number of the signal that ended it or that came meanwhile.
    """
    came: list[int] = []
    process = subprocess.Popen(
        [sys.executable, "-m", "synflow_pl", *args], pass_fds=[lock.fileno()]
    )

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)
        if number == signal.SIGTERM:
            process.send_signal(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        return 128 + came[0]
    return status if status >= 0 else 128 - status


def _compare(run: Path, options: list[str]) -> None:
    """Refuse to go on with a run that was begun with other options."""
    if not (run / CONFIG).is_file():
        return
    was, asked = (Plan.of(args).flat for args in (["--config", str(run / CONFIG)], options))
    for key in sorted(was.keys() | asked.keys()):
        if was.get(key) != asked.get(key):
            exit_with_error(
                f"{run} was begun with {key}={was.get(key)}, not {asked.get(key)}; give the same options to go on,"
                " or another --run to begin anew"
            )


class Plan(CLI):
    """A command line that has been parsed and filled in; nothing is built or run."""

    @classmethod
    def of(cls, options: list[str], own: Sequence[str] = ()) -> Plan:
        """Return what these options of ``fit`` mean; ``own`` names options that the subcommand
        parses by itself.
        """
        _quieten()
        try:
            return cls(_prepare(["fit", *options]), own)
        except FileNotFoundError as error:
            exit_with_error(str(error))

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        self._fill_in()

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    @property
    def default_name(self) -> str:
        """The name that a run of these options would have."""
        return self._default_name()

    @property
    def flat(self) -> dict[str, str]:
        """Every option by name, but for those that say where to start."""
        flat: dict[str, Any] = vars(self.options.as_flat())
        # A file gives back a default tuple as a list.
        plain = {
            key: list(value) if isinstance(value, tuple) else value for key, value in flat.items()
        }
        return {
            key: str(value) for key, value in plain.items() if key.split(".")[0] not in _OF_A_START
        }


@contextmanager
def _alone(root: Path, base: str) -> Iterator[IO[str]]:
    """Nobody else works on these levels meanwhile. What is started holds the lock too: a run goes
    on when this process is killed.
    """
    make_folder(root, "--trainer.default_root_dir")
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # so that the run that was started ends as well
    path = root / f".{base}.lock"
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            exit_with_error(
                f"another process works on {root / base}; wait for it or end it, or give another --run"
            )
        yield lock
        os.unlink(path)


def _table(runs: list[Path]) -> str:
    """What came of each level: the last validation accuracy that its metrics.csv holds."""
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
