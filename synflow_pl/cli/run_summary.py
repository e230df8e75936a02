"""Print at the end of a training where its run is, and the commands that use it."""

from __future__ import annotations

import os
from pathlib import Path

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from synflow_pl.runs.training_record import Training, read_record

__all__ = ["finished_message", "print_summary"]


def print_summary(run_folder: Path, trainer: Trainer, finished: bool) -> None:
    """Print the run's folder and the commands that test it and show its curves.

    Args:
        run_folder: Folder of the run.
        trainer: The trainer.
        finished: Whether the run had ended before, so that nothing was left to train.
    """
    folder = os.path.relpath(run_folder)
    if finished and (record := read_record(run_folder)) is not None:
        print(f"\n{finished_message(run_folder, record)}")
    print(
        f"\nThe run lies in       {folder}\n"
        f"Test it with          python -m synflow_pl test --ckpt_path {folder}"
    )
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        runs = os.path.relpath(run_folder.parent)
        print(f"Look at all runs with tensorboard --logdir {runs}")


def finished_message(run: Path, record: Training) -> str:
    """Return the message that a run has ended and how it could be trained longer.

    Args:
        run: Folder of the run.
        record: Record of its training.
    """
    return (
        f"{os.path.relpath(run)} has come to its end after {record.epochs} epochs ({record.steps} "
        "steps), so that nothing is left to train; train longer with other options "
        "(--trainer.max_epochs) and --ckpt_path of that run."
    )
