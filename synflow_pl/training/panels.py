"""Panels: what a logger shows of a pruning. Scalars go to every logger; pictures and hyperparameters to TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger

from synflow_pl.diagnosis import Diagnosis
from synflow_pl.figures import density_per_layer

__all__ = ["show_density", "show_diagnosis", "show_hyperparameters"]

# More bars than this make no picture that can be read.
_MOST_BARS = 150


def show_density(loggers: Iterable[Logger], index: int, density: float) -> None:
    """The density after a round, as the scalar ``pruning/density`` with the round as its step."""
    for logger in loggers:
        logger.log_metrics({"pruning/density": density}, step=index)


def show_diagnosis(loggers: Iterable[Logger], told: Diagnosis) -> None:
    """The effective density as a scalar, density per layer as bars, and the table as text."""
    for logger in loggers:
        logger.log_metrics({"pruning/effective_density": told.effective_density}, step=0)
        if isinstance(logger, TensorBoardLogger):
            writer = logger.experiment
            if len(told.layers) <= _MOST_BARS:
                names = [layer.name for layer in told.layers]
                figure = density_per_layer(names, [layer.density for layer in told.layers], told.density)
                writer.add_figure("pruning/density_per_layer", figure, close=False)
            writer.add_text("pruning/table", "\n".join(f"    {line}" for line in told.table().splitlines()))


def show_hyperparameters(loggers: Iterable[Logger], settings: Mapping[str, Any], metrics: Iterable[str]) -> None:
    """The row of this run in TensorBoard's HPARAMS tab. Its ``metrics`` are named now and take their values as they are logged,
    also by a later ``test`` that writes into the same run.
    """
    from torch.utils.tensorboard.summary import hparams

    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            plain = {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in settings.items()}
            for summary in hparams(plain, dict.fromkeys(metrics, 0)):
                logger.experiment.file_writer.add_summary(summary)
