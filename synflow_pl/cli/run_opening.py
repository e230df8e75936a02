"""Open the folder of a run: create it, or use that of the run which is resumed or evaluated."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from synflow_pl.cli import EVALUATIONS, resume
from synflow_pl.cli.command import Command
from synflow_pl.cli.run_selection import (
    RunSelection,
    is_rank_zero,
    lock_or_raise,
    run_of_checkpoint,
)
from synflow_pl.runs import create_run_folder, find_run_folder
from synflow_pl.runs.environment import record_environment
from synflow_pl.runs.training_record import Training, read_record, write_record

__all__ = ["CLAIMED", "open_run_folder"]

CLAIMED = "SYNFLOW_PL_RUN"
"""Environment variable with the run's folder, which rank 0 claims and other ranks inherit."""


def open_run_folder(command: Command, selection: RunSelection) -> Path | None:
    """Return the folder of the run, which is created and locked where a new run begins.

    Args:
        command: Parsed command line; its option ``run`` becomes the name of the folder.
        selection: The run that the command resumes.

    Returns:
        The folder; ``None`` for an evaluation of a checkpoint that is in no run, and for a process
        to which rank 0 has passed no folder.

    Raises:
        ValueError: If another process works in the run.
    """
    options = command.options
    if command.name in EVALUATIONS:
        checkpoint = options.get("ckpt_path")
        return find_run_folder(Path(checkpoint)) if checkpoint else None
    if not is_rank_zero():
        return Path(os.environ[CLAIMED]) if CLAIMED in os.environ else None
    folder = selection.resumed_run or run_of_checkpoint(options, command.root)
    if folder is None:
        folder = create_run_folder(
            command.root / "lightning_logs", options.get("run") or command.default_name
        )
    os.environ[CLAIMED] = str(folder)
    options["run"] = folder.name
    if selection.resumed_run is None:
        lock_or_raise(folder)
        resume.write_config(folder, selection.recorded_config or command.config_text)
    if command.name == "fit" and not selection.finished:
        before = read_record(folder) or Training(False)
        write_record(folder, replace(before, ended=False, epochs=0, steps=0))
    record_environment(folder)
    return folder
