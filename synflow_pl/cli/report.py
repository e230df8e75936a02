"""Write a table and figures over many runs, without importing torch."""

from __future__ import annotations

import os
from pathlib import Path

from synflow_pl.cli.options import Options, exit_with_error

__all__ = ["report"]


def report(args: list[str]) -> None:
    """Write the report, print its table, and list the runs that are left out with the reasons.

    The exit status is 2 if there is nothing to report.

    Args:
        args: Folders of runs, and options of the command.
    """
    parser = Options(
        "report",
        description="Read runs and write a table (CSV, Markdown, LaTeX) and figures: the "
        "accuracies of every pruner at every density; accuracy against compression, effective "
        "density and FLOPs, with bands of a sample deviation; weights kept in each layer.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUNS",
        help="runs, or folders of runs: lightning_logs, a sweep's",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report"), help="folder to write into (default: report)"
    )
    parser.add_argument(
        "--reference",
        default="synflow",
        help="pruner that the others are compared with (default: synflow)",
    )
    parser.add_argument(
        "--paper",
        action="store_true",
        help="draw the published curves of Tanaka et al. 2020, Figure 6, beside ours",
    )
    own = parser.parse_args(args)

    from synflow_pl.cli.recipes import overlays
    from synflow_pl.io import check_folder, explain
    from synflow_pl.runs.report_table import as_markdown
    from synflow_pl.runs.report_writer import report as write_report

    try:
        check_folder(own.out, "--out")
        summary = write_report(
            own.runs, own.out, overlays(), reference=own.reference, paper=own.paper
        )
    except (OSError, ValueError) as error:
        exit_with_error(explain(error))
    print(as_markdown(summary.cells, own.reference))
    if own.reference not in {cell.pruner for cell in summary.cells}:
        print(
            f"There is no run of {own.reference} to compare with; name another pruner with "
            "--reference."
        )
    if own.paper and not any(path.name.startswith("published-") for path in summary.written):
        print("No published curve is of the network and data of these runs, so --paper draws none.")
    elif own.paper and all(cell.accuracy("best_on_test") is None for cell in summary.cells):
        print(
            "The published curves stand alone: no run here was tested after each epoch "
            "(--data.test_each_epoch true)."
        )
    parts = sum(
        run.accuracies.final is None for cell in summary.cells for run in cell.runs.values()
    )
    if parts:
        print(
            f"{parts} runs were tested on a part of the test set (trainer.limit_test_batches), and "
            "their accuracy is not reported."
        )
    for folder, reason in summary.left_out.items():
        print(f"left out: {os.path.relpath(folder)}: {reason}")
    if summary.num_intermediate:
        print(
            f"{summary.num_intermediate} levels of multi-shot pruning are not reported, since they "
            "are not the last of theirs."
        )
    count = sum(len(cell.runs) for cell in summary.cells)
    print(
        f"{count} runs reported, {len(summary.left_out)} left out; {len(summary.written)} files in "
        f"{os.path.relpath(own.out)}"
    )
