"""Log the results of pruning: numbers and a table to every logger, figures to TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger
from torch import Tensor, nn
from torchvision.utils import make_grid

from synflow_pl.diagnosis import Diagnosis
from synflow_pl.figures import density_per_layer, layers_over_rounds, unit_scores
from synflow_pl.figures.style import MOST_LAYERS
from synflow_pl.flow import linearise, unit_sums
from synflow_pl.masks import Masks
from synflow_pl.pruners.recording import RecordingPruner

__all__ = [
    "show_density",
    "show_diagnosis",
    "show_hyperparameters",
    "show_masks",
    "show_rounds",
    "show_update",
    "wants_pictures",
]

_MOST_SCORES = 1_000_000
"""Largest number of scores in a histogram; more of them take seconds and change nothing visible."""
_MOST_UNITS, _SIDE = 256, 48
"""Largest number of units in the image of masks, and the side of a unit's square in pixels."""


def wants_pictures(loggers: Iterable[Logger]) -> bool:
    """Return whether any logger is a TensorBoardLogger, which shows figures.

    Args:
        loggers: Loggers of the Trainer.
    """
    return any(isinstance(logger, TensorBoardLogger) for logger in loggers)


def _boards(loggers: Iterable[Logger]) -> list[Any]:
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]


def _place(label: str) -> str:
    """Return the prefix of the names of metrics and figures, with the label if it is not empty."""
    return f"pruning/{label}" if label else "pruning"


def show_density(loggers: Iterable[Logger], index: int, density: float, label: str = "") -> None:
    """Log the density after a round as ``pruning/density``, with the round as its step.

    Args:
        loggers: Loggers of the Trainer.
        index: Index of the round.
        density: Density after the round.
        label: Name of one of several pruned networks; the metric is then
            ``pruning/LABEL/density``.
    """
    for logger in loggers:
        logger.log_metrics({f"{_place(label)}/density": density}, step=index)


def show_update(
    loggers: Iterable[Logger], step: int, diagnosis: Diagnosis, fraction: float, label: str = ""
) -> None:
    """Log density, effective density and drop fraction after an update of the masks.

    They are the metrics ``pruning/density``, ``pruning/effective_density`` and
    ``pruning/drop_fraction``.

    Args:
        loggers: Loggers of the Trainer.
        step: Index of the optimiser step, counted from 0.
        diagnosis: Diagnosis of the network after the update.
        fraction: Fraction of the kept weights of each layer that was dropped.
        label: Name of one of several pruned networks, which becomes part of all names.
    """
    values = {
        "density": diagnosis.density,
        "effective_density": diagnosis.effective_density,
        "drop_fraction": fraction,
    }
    for logger in loggers:
        logger.log_metrics({f"{_place(label)}/{key}": x for key, x in values.items()}, step=step)


def show_diagnosis(
    loggers: Iterable[Logger], diagnosis: Diagnosis, label: str = "", step: int = 0
) -> None:
    """Log the effective density, the table of the diagnosis and, in TensorBoard, a bar chart.

    The table is a text in TensorBoard, the files ``diagnosis.csv`` and ``diagnosis.json`` in the
    folder of a CSVLogger, a table in W&B, and a file of the run in MLflow. The bar chart shows the
    density and the effective density of each layer, for networks of at most 150 layers.

    Args:
        loggers: Loggers of the Trainer.
        diagnosis: Diagnosis of the pruned network.
        label: Name of one of several pruned networks, which becomes part of all names.
        step: Number of optimiser steps.
    """
    place, name = _place(label), f"diagnosis_{label}" if label else "diagnosis"
    for logger in loggers:
        logger.log_metrics({f"{place}/effective_density": diagnosis.effective_density}, step=step)
        if isinstance(logger, TensorBoardLogger):
            # Markdown shows lines that begin with four spaces as code, without changes.
            lines = [f"    {line}" for line in diagnosis.table().splitlines()]
            logger.experiment.add_text(f"{place}/table", "\n".join(lines))
        elif isinstance(logger, CSVLogger):
            diagnosis.to_csv(Path(logger.log_dir) / f"{name}.csv")
            diagnosis.to_json(Path(logger.log_dir) / f"{name}.json")
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, diagnosis.table(), f"{place}/table.txt")
        elif callable(table := getattr(logger, "log_table", None)):
            rows = [
                [x.name, x.total, x.kept, x.density, x.effective, x.effective_density]
                for x in diagnosis.layers
            ]
            table(
                f"{place}/table",
                columns=[
                    "parameter",
                    "weights",
                    "kept",
                    "density",
                    "effective",
                    "effective density",
                ],
                data=rows,
            )
    if (boards := _boards(loggers)) and len(diagnosis.layers) <= MOST_LAYERS:
        names, layers = [layer.name for layer in diagnosis.layers], diagnosis.layers
        figure = density_per_layer(
            names,
            [x.density for x in layers],
            diagnosis.density,
            [x.effective_density for x in layers],
        )
        _add(boards, f"{place}/density_per_layer", figure, height=1)


def show_masks(
    loggers: Iterable[Logger], network: nn.Module, masks: Masks, label: str = ""
) -> None:
    """Log an image of the masks of the first convolution to TensorBoard.

    Each unit is a square of its kernel's size, white where the weight is kept. Three input channels
    are shown as red, green and blue; for another number of channels, brightness is the fraction of
    channels in which the weight is kept. At most 256 units are shown. A network without a pruned
    convolution gets no image.

    Args:
        loggers: Loggers of the Trainer.
        network: Pruned network.
        masks: Masks of the network, by parameter name.
        label: Name of one of several pruned networks, which becomes part of the image's name.
    """
    first = next(
        (
            name
            for name, x in network.named_modules()
            if isinstance(x, nn.Conv2d) and f"{name}.weight" in masks
        ),
        None,
    )
    boards = _boards(loggers)
    if first is None or not boards:
        return
    squares = masks[f"{first}.weight"][:_MOST_UNITS].float()
    if squares.shape[1] != 3:
        squares = squares.mean(1, keepdim=True)
    larger = max(1, _SIDE // max(squares.shape[2:]))
    squares = squares.repeat_interleave(larger, 2).repeat_interleave(larger, 3)
    grid = make_grid(squares, nrow=8 if len(squares) <= 64 else 16, padding=3, pad_value=0.5)
    for board in boards:
        board.add_image(f"{_place(label)}/masks_of_{first}", grid)


def show_rounds(
    loggers: Iterable[Logger],
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    masks: Masks,
    recording: RecordingPruner,
    label: str = "",
) -> None:
    """Log figures of the rounds and scores of a pruning to TensorBoard.

    The figures are the number of kept weights of each layer over the rounds; histograms of the last
    round's scores of the kept weights; and, for each hidden unit, the sums of these scores over its
    inputs and its outputs, which are equal if scores are conserved.

    Networks of more than 150 layers get neither the first figure nor histograms. Networks in which
    the units cannot be separated (as behind attention) get no sums.

    Args:
        loggers: Loggers of the Trainer.
        network: Pruned network.
        inputs: Example inputs of the network.
        masks: Masks of the network, by parameter name.
        recording: Pruner that has recorded its rounds.
        label: Name of one of several pruned networks, which becomes part of all names.
    """
    boards = _boards(loggers)
    if not boards or not recording.kept:
        return
    if len(recording.kept) <= MOST_LAYERS:
        num_kept = [sum(counts) for counts in zip(*recording.kept.values(), strict=True)]
        _add(
            boards,
            f"{_place(label)}/layers_over_rounds",
            layers_over_rounds([masks.total / count for count in num_kept], recording.kept),
        )
        for name, scores in recording.scores.items():
            _histogram(
                boards, f"{label}/{name}" if label else name, scores[masks[name].to(scores.device)]
            )
    sums = unit_sums(linearise(network, inputs), recording.scores)
    if sums:
        _add(
            boards,
            f"{_place(label)}/unit_scores",
            unit_scores({name: (a.tolist(), b.tolist()) for name, (a, b) in sums.items()}),
        )


def _histogram(boards: list[Any], name: str, scores: Tensor) -> None:
    """Log a histogram of the decimal logarithms of nonzero scores, which span many magnitudes."""
    scores = scores[:: max(1, len(scores) // _MOST_SCORES)]
    exponents = scores.abs().log10()
    exponents = exponents[exponents.isfinite()]
    if len(exponents):
        for board in boards:
            board.add_histogram(
                f"log10_scores/{name.removesuffix('.weight')}", exponents.cpu(), bins=60
            )


def _add(boards: list[Any], name: str, figure: Any, height: float = 0.7) -> None:
    # TensorBoard scales figures to a third of a page; text is larger in a smaller figure.
    figure.set_size_inches(0.7 * figure.get_figwidth(), height * figure.get_figheight())
    for board in boards:
        board.add_figure(name, figure, close=False)


def show_hyperparameters(
    loggers: Iterable[Logger], settings: Mapping[str, Any], metrics: Iterable[str]
) -> None:
    """Log hyperparameters, in TensorBoard as a row of its HPARAMS tab.

    Args:
        loggers: Loggers of the Trainer.
        settings: Hyperparameters, by name.
        metrics: Names of the metrics in the row of TensorBoard. They take their values when they
            are logged, also by a later ``test`` that writes into the same run.
    """
    from torch.utils.tensorboard.summary import hparams

    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            plain = {
                key: value if isinstance(value, (bool, int, float, str)) else str(value)
                for key, value in settings.items()
            }
            for summary in hparams(plain, dict.fromkeys(metrics, 0)):
                logger.experiment.file_writer.add_summary(summary)
        else:
            logger.log_hyperparams(dict(settings))
