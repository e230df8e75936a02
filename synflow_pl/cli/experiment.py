"""Check what the theory says about scores in any network, and write a table and a figure.

units      for every hidden unit, the sum of the scores into it and the sum of those out of it
layers     the average score of each layer against its size
magnitude  the average squared weight of each layer against its size, before and after each epoch
           of dense training
schedule   the largest score that a round removes, relative to the smallest score of a whole layer,
           by schedule, number of rounds and compression
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from synflow_pl import figures
from synflow_pl.cli.command_line import resolve
from synflow_pl.cli.experiment_plan import Plan, Training, pruner_of
from synflow_pl.cli.log_filters import quieten
from synflow_pl.cli.options import Options, exit_with_error, near
from synflow_pl.diagnosis.files import write_csv
from synflow_pl.experiments import (
    largest_difference,
    largest_ratio,
    layer_scores,
    unit_differences,
    variation,
)
from synflow_pl.figures.style import save
from synflow_pl.flow import linearise, unit_sums
from synflow_pl.io import explain
from synflow_pl.pruning_options import PruningOptions
from synflow_pl.schedules import SCHEDULES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EXPERIMENTS", "experiment", "planned"]

# Pruners of Figures 3 and 4 of Tanaka et al. 2020; rounds and exponents of their Figure 7.
_PRUNERS = ["random", "magnitude", "snip", "grasp", "synflow"]
_ROUNDS = [1, 10, 20, 30, 40, 50, 100]
_EXPONENTS = [0.5, 1, 1.5, 2, 2.5, 3]


def experiment(args: list[str]) -> None:
    """Run one experiment.

    A mistake in the options is one sentence on standard error and exit status 2; an error after
    work has begun has exit status 1.

    Args:
        args: Name of the experiment, its own options, and options of ``fit``.
    """
    if args[:1] in ([], ["-h"], ["--help"]):
        print(
            f"usage: synflow_pl experiment {{{','.join(EXPERIMENTS)}}} [OPTIONS] [OPTIONS OF "
            f"fit]\n\n{__doc__}"
        )
        print(
            "Options of one experiment: synflow_pl experiment NAME --help. The network and the "
            "data are those of fit."
        )
        return
    own, plan = planned(args)
    try:
        EXPERIMENTS[args[0]](own, plan, shlex.join(["synflow_pl", "experiment", *args]))
    except (ValueError, OSError, FloatingPointError) as error:
        exit_with_error(explain(error), status=1)


def planned(args: list[str]) -> tuple[argparse.Namespace, Plan | Training]:
    """Parse an experiment's own options, and build the network and data from the other options.

    Args:
        args: Name of the experiment, its own options, and options of ``fit``.

    Returns:
        The own options, with the pruners in ``pruner_by_overlay``, and the network and data.
    """
    name = args[0]
    if name not in EXPERIMENTS:
        exit_with_error(
            f"there is no experiment {name!r}; there are "
            f"{', '.join(EXPERIMENTS)}{near(name, list(EXPERIMENTS))}"
        )
    parser = Options(
        f"experiment {name}",
        usage="%(prog)s [OPTIONS] [OPTIONS OF fit]",
        description=EXPERIMENTS[name].__doc__,
    )
    if name != "magnitude":
        default = ["synflow"] if name == "schedule" else _PRUNERS
        parser.add_argument(
            "--pruners",
            nargs="+",
            default=default,
            metavar="OVERLAY",
            help=f"overlays in pruners/ (default: {default})",
        )
        parser.add_argument(
            "--noise",
            type=int,
            metavar="IMAGES",
            help="score on so many images of Gaussian noise with random labels instead of the data",
        )
    if name == "schedule":
        parser.add_argument(
            "--schedules",
            nargs="+",
            choices=[*SCHEDULES, "auto"],
            help="schedules; auto chooses its rounds itself (default: linear, exponential and, for"
            " pruners that have it, auto)",
        )
        parser.add_argument(
            "--rounds",
            nargs="+",
            type=int,
            default=_ROUNDS,
            help=f"numbers of rounds (default: {_ROUNDS})",
        )
        parser.add_argument(
            "--exponents",
            nargs="+",
            type=float,
            default=_EXPONENTS,
            help=f"x of the compressions 10^x, positive (default: {_EXPONENTS})",
        )
    own, options = parser.parse_known_args(args[1:])
    if getattr(own, "noise", None) is not None and own.noise < 1:
        exit_with_error(f"noise: {own.noise} must be a number of images, at least 1")
    if name == "schedule" and (min(own.rounds) < 1 or min(own.exponents) <= 0):
        exit_with_error(
            f"rounds {own.rounds} must be at least 1 each, and exponents {own.exponents} positive: "
            "density is 10^-exponent"
        )
    try:
        overlays = getattr(own, "pruners", ())
        own.pruner_by_overlay = {overlay: pruner_of(overlay) for overlay in overlays}
        if "auto" in (getattr(own, "schedules", None) or ()):
            for pruner in own.pruner_by_overlay.values():
                PruningOptions(density=1.0, rounds="auto").check_pruner(pruner)
        prepared = resolve(["fit", *options])
    except (FileNotFoundError, ValueError) as error:
        exit_with_error(str(error))
    quieten()
    return own, (Training if name == "magnitude" else Plan)(prepared, name, parser.names)


def _units(own: argparse.Namespace, plan: Plan, command: str) -> None:
    """Sum the scores of the weights into and out of every hidden unit (Figure 3).

    A unit whose output also reaches other units without a weight (through a shortcut) is left out;
    the remaining units of a layer are numbered consecutively.
    """
    linear_network = linearise(plan.network, plan.inputs)
    rows, panels, summary = [], {}, []
    for overlay, scores in plan.scores(own.pruner_by_overlay, own.noise):
        sums = unit_sums(linear_network, scores)
        if not sums:
            raise ValueError(
                "units: no unit of this network is left by weights alone, so there are no sums to"
                " compare"
            )
        panels[overlay] = [(into.tolist(), out.tolist()) for into, out in sums.values()]
        rows += [
            {
                "pruner": overlay,
                "layer": layer,
                "unit": unit,
                "into": float(into),
                "out": float(out),
            }
            for layer, both in sums.items()
            for unit, (into, out) in enumerate(zip(*both, strict=True))
        ]
        off = unit_differences(sums.values())
        summary.append((overlay, f"{len(off):,}", f"{off.median():.2e}", f"{off.max():.2e}"))
    _print(("pruner", "units", "difference between in and out: median", "largest"), summary)
    _write(plan.folder, "units", rows, figures.unit_conservation(panels), command)


def _layers(own: argparse.Namespace, plan: Plan, command: str) -> None:
    """Compare each layer's average score with its size (Figure 4).

    The table states how far the layers' total scores are from being equal.
    """
    rows, sizes, averages, summary = [], {}, {}, []
    for overlay, scores in plan.scores(own.pruner_by_overlay, own.noise):
        layers = layer_scores(scores)
        totals = [layer.total for layer in layers]
        summary.append((overlay, f"{variation(totals):.4f}", f"{largest_difference(totals):.2e}"))
        sizes[overlay] = [layer.size for layer in layers]
        averages[overlay] = [layer.average for layer in layers]
        rows += [
            {
                "pruner": overlay,
                "layer": layer.layer,
                "weights": layer.size,
                "total": layer.total,
                "average": layer.average,
            }
            for layer in layers
        ]
    _print(
        ("pruner", "layers' totals: coefficient of variation", "largest difference from the mean"),
        summary,
    )
    _write(plan.folder, "layers", rows, figures.layer_averages(sizes, averages), command)


def _magnitude(own: argparse.Namespace, plan: Training, command: str) -> None:
    """Compare each layer's average squared weight with its size during training (Figure 5b).

    The weights are recorded before dense training and after each of its epochs.
    """
    snapshots = plan.recorder.snapshots
    run_folder = plan.session.run_folder
    if run_folder is None or len(snapshots) < 2:
        raise ValueError(
            "magnitude: there was no training to look at; leave out fast_dev_run, and train for an "
            "epoch at least"
        )
    if not plan.session.trainer.is_global_zero:
        return
    rows = [
        {
            "epoch": x.epoch,
            "layer": y.layer,
            "weights": y.size,
            "total": y.total,
            "average": y.average,
        }
        for x in snapshots
        for y in x.layers
    ]
    summary = [
        (str(x.epoch), f"{variation([layer.total for layer in x.layers]):.4f}") for x in snapshots
    ]
    _print(("epoch", "layers' totals: coefficient of variation"), summary)
    averages = {x.epoch: [layer.average for layer in x.layers] for x in snapshots}
    sizes = [layer.size for layer in snapshots[0].layers]
    _write(run_folder, "magnitude", rows, figures.magnitude_growth(sizes, averages), command)


def _schedule(own: argparse.Namespace, plan: Plan, command: str) -> None:
    """Compare the scores that a round removes with the scores of a whole layer (Figure 7).

    For each schedule, number of rounds and compression 10^x, the ratio is that of the prune size
    (the scores that a round removes) to the cut size (the smallest total score of a layer), and
    the largest over the rounds is written. Below 1 no layer collapses before it must (Theorem 3).
    The schedule auto takes as many rounds as it needs, which the table states.
    """
    batches = plan.batches(own.pruner_by_overlay.values(), own.noise)
    loss = plan.model.loss
    cases: list[tuple[str, Any, float, int | Literal["auto"]]] = []
    for overlay, pruner in own.pruner_by_overlay.items():
        automatic = ["auto"] if pruner.scores_are_path_sums else []
        for schedule in own.schedules or ["linear", "exponential", *automatic]:
            numbers: list[int | Literal["auto"]] = ["auto"] if schedule == "auto" else own.rounds
            cases += [(overlay, schedule, x, n) for x in own.exponents for n in numbers]
    rows: list[dict[str, Any]] = []
    known = sum(case[-1] for case in cases if case[-1] != "auto")
    with tqdm(total=known or None, unit="round", leave=False) as bar:
        for overlay, schedule, exponent, rounds in cases:
            bar.set_description(f"{overlay}, {schedule}, 10^{exponent:g} in {rounds}")
            fixed = rounds != "auto"
            result = largest_ratio(
                plan.network,
                own.pruner_by_overlay[overlay],
                10**-exponent,
                rounds,
                schedule if fixed else None,
                example_input=plan.inputs,
                batches=plan.batches_of_rounds(overlay, batches, own.noise),
                loss=loss,
                scope=plan.options.pruning.scope,
                on_round=lambda *_, fixed=fixed: bar.update(1 if fixed else 0),
                **plan.scoring(overlay),
            )
            rows.append(
                {
                    "pruner": overlay,
                    "schedule": schedule,
                    "exponent": exponent,
                    "rounds": result.rounds,
                    "ratio": result.ratio,
                    "at": result.round,
                }
            )
            # Written after each row, since all of them may take hours.
            write_csv(plan.folder / "schedule.csv", rows)
    keys = ("pruner", "schedule", "exponent", "rounds", "ratio", "at")
    _print(
        keys,
        [
            tuple(f"{row[key]:.4g}" if key == "ratio" else str(row[key]) for key in keys)
            for row in rows
        ],
    )
    panels: dict[str, dict[float, dict[int, float]]] = {}
    for row in rows:
        panel = panels.setdefault(f"{row['pruner']}, {row['schedule']}", {})
        panel.setdefault(row["exponent"], {})[row["rounds"]] = row["ratio"]
    _write(plan.folder, "schedule", rows, figures.round_ratios(panels), command)


EXPERIMENTS: dict[str, Callable[[argparse.Namespace, Any, str], None]] = {
    "units": _units,
    "layers": _layers,
    "magnitude": _magnitude,
    "schedule": _schedule,
}


def _write(
    folder: Path, name: str, rows: list[dict[str, Any]], figure: Figure, command: str
) -> None:
    """Write the table, the figure and the command that made them, and print their paths."""
    (folder / "command.txt").write_text(f"{command}\n")
    paths = [folder / f"{name}.csv", *save(figure, folder / name)]
    write_csv(paths[0], rows)
    print(f"\nWritten: {', '.join(os.path.relpath(path) for path in paths)}")


def _print(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    sys.stdout.write("\n")
    for row in (head, *rows):
        print(
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )
