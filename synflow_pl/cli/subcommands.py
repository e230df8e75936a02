"""Run the subcommands that are methods of Lightning's Trainer."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from synflow_pl.cli.predictions import write_predictions
from synflow_pl.cli.run_summary import print_summary
from synflow_pl.cli.session import Session
from synflow_pl.runs import CONFIG, RunCSV, RunTensorBoard
from synflow_pl.runs.loggers import Tested
from synflow_pl.runs.run_options import changed_test_options
from synflow_pl.training.checkpoints import read

__all__ = ["ACTIONS", "fit", "predict", "test", "validate"]


def fit(session: Session, **arguments: Any) -> None:
    """Train, and print the run's folder and the commands that test it and show its curves.

    Args:
        session: Session with an open run.
        **arguments: Arguments of ``Trainer.fit``.
    """
    session.trainer.fit(**arguments)
    if session.run_folder is not None and session.trainer.is_global_zero:
        print_summary(session.run_folder, session.trainer, session.selection.finished)


def validate(session: Session, **arguments: Any) -> None:
    """Validate.

    Args:
        session: Session with an open run.
        **arguments: Arguments of ``Trainer.validate``.
    """
    session.trainer.validate(**arguments)


def test(session: Session, **arguments: Any) -> None:
    """Test, and keep the metrics in the session.

    The run records which checkpoint was tested, and which options differed from training.

    Args:
        session: Session with an open run.
        **arguments: Arguments of ``Trainer.test``.
    """
    if session.run_folder is not None:
        tested = _tested(session, session.run_folder)
        for logger in session.trainer.loggers:
            if isinstance(logger, (RunCSV, RunTensorBoard)):
                logger.tested = tested
    session.metrics = session.trainer.test(**arguments)


def _tested(session: Session, run_folder: Path) -> Tested:
    """Return which checkpoint is tested; its name is empty for a network trained just now."""
    command = session.command
    path = command.options.get("ckpt_path") if command.name == "test" else None
    if path is None:
        now = yaml.safe_load(command.config_text)
        return Tested("", None, session.trainer.global_step, changed_test_options(now, now))
    content = read(path)
    changed = changed_test_options(
        yaml.safe_load((run_folder / CONFIG).read_text()),
        yaml.safe_load(command.config_text),
    )
    name = os.path.relpath(path, run_folder)
    return Tested(name, int(content.get("epoch", 0)), int(content.get("global_step", 0)), changed)


def predict(session: Session, **arguments: Any) -> None:
    """Predict, and write ``predictions.csv``.

    The file has for each image its number or file, the likeliest class and its probability.

    Args:
        session: Session with an open run.
        **arguments: Arguments of ``Trainer.predict``.

    Raises:
        ValueError: If there is more than one device.
    """
    trainer, data = session.trainer, session.datamodule
    if trainer.world_size > 1:
        raise ValueError(
            f"predict runs on one device, not {trainer.world_size}; add --trainer.devices 1"
        )
    batches = trainer.predict(**{**arguments, "return_predictions": True})
    own = getattr(data, "predict_dir", None) is not None
    images = data.predict_files if own else itertools.count()
    path = (session.run_folder or Path(".")) / "predictions.csv"
    write_predictions(path, images, torch.cat(batches))  # type: ignore[arg-type]


ACTIONS: dict[str, Callable[..., None]] = {
    "fit": fit,
    "validate": validate,
    "test": test,
    "predict": predict,
}
"""Function that runs each subcommand, by its name."""
