"""Parse the options of ``sweep``, and separate them from the options of ``fit``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from synflow_pl.cli.errors import clarify, exit_with_error
from synflow_pl.cli.recipes import find_recipe
from synflow_pl.runs.launchers import Slurm
from synflow_pl.runs.sweep_grid import Sweep

__all__ = ["parse_sweep", "sweep_option_names"]

_ABOUT = "Train and test a grid of runs; finished runs are skipped, and failed runs are retried."


def sweep_option_names() -> list[str]:
    """Return the names of the options of ``sweep``, without leading dashes."""
    return [
        option[2:]
        for action in _parser()._actions
        for option in action.option_strings
        if option.startswith("--")
    ]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="synflow_pl sweep",
        usage="%(prog)s -c SWEEP [--folder FOLDER] [--dry_run] [--launcher slurm] [OPTIONS OF fit]",
        description=_ABOUT,
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


def parse_sweep(args: Sequence[str]) -> tuple[Namespace, Sweep, list[str]]:
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
    own.parallel = own.parallel or max(1, torch.cuda.device_count())
    return own, grid, extra
