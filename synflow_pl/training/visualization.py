"""Panels: what loggers show of a pruning. Numbers and the table go to every logger, pictures and
hyperparameters to TensorBoard.
"""

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
    "wants_pictures",
]

# Histograms of more scores than this look the same and take seconds.
_MOST_SCORES = 1_000_000
# Of the picture of masks: units in it, and the side of one in pixels.
_MOST_UNITS, _SIDE = 256, 48


def wants_pictures(loggers: Iterable[Logger]) -> bool:
    """Whether any logger shows more than numbers and the table."""
    return any(isinstance(logger, TensorBoardLogger) for logger in loggers)


def _boards(loggers: Iterable[Logger]) -> list[Any]:
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]


def _place(label: str) -> str:
    """Return what the names of metrics and panels begin with; of several pruned networks, each has
    its own name in it.
    """
    return f"pruning/{label}" if label else "pruning"


def show_density(loggers: Iterable[Logger], index: int, density: float, label: str = "") -> None:
    """The density after a round, as the scalar ``pruning/density`` with the round as its step
    (``pruning/LABEL/density``).
    """
    for logger in loggers:
        logger.log_metrics({f"{_place(label)}/density": density}, step=index)


def show_diagnosis(loggers: Iterable[Logger], told: Diagnosis, label: str = "") -> None:
    """The effective density; all that was found as a table; and in TensorBoard the density of each
    layer as bars, direct and effective.

    The table is a text in TensorBoard, files ``diagnosis.csv`` and ``diagnosis.json`` beside a
    CSVLogger's metrics, a table in W&B, a file of the run in MLflow. A network of more than 150
    layers gets no bars. A label, the name of one of several networks, is put into the names.
    """
    place, name = _place(label), f"diagnosis_{label}" if label else "diagnosis"
    for logger in loggers:
        logger.log_metrics({f"{place}/effective_density": told.effective_density}, step=0)
        if isinstance(logger, TensorBoardLogger):
            # Four blanks make it a block of code, in which Markdown leaves every character alone.
            logger.experiment.add_text(
                f"{place}/table", "\n".join(f"    {line}" for line in told.table().splitlines())
            )
        elif isinstance(logger, CSVLogger):
            told.to_csv(Path(logger.log_dir) / f"{name}.csv")
            told.to_json(Path(logger.log_dir) / f"{name}.json")
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, told.table(), f"{place}/table.txt")
        elif callable(table := getattr(logger, "log_table", None)):
            rows = [
                [x.name, x.total, x.kept, x.density, x.effective, x.effective_density]
                for x in told.layers
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
    if (boards := _boards(loggers)) and len(told.layers) <= MOST_LAYERS:
        names, layers = [layer.name for layer in told.layers], told.layers
        figure = density_per_layer(
            names, [x.density for x in layers], told.density, [x.effective_density for x in layers]
        )
        _add(boards, f"{place}/density_per_layer", figure, height=1)


def show_masks(
    loggers: Iterable[Logger], network: nn.Module, masks: Masks, label: str = ""
) -> None:
    """In TensorBoard, the masks of the first convolution, a square for each unit: white where the
    weight lives. With three inputs they are its colours, with others white is the fraction of
    inputs. Of more than 256 units the first; nothing without a convolution.
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
    watched: RecordingPruner,
    label: str = "",
) -> None:
    """In TensorBoard, what the pruner did: the weights left in each layer over the rounds; of the
    scores that decided the last round, histograms of those of the weights kept, and the sums into
    and out of each hidden unit, which agree if scores are conserved.

    Left out are lines and histograms of more than 150 layers; and the dots of units, if no unit of
    the network can be told apart from others (as behind attention).
    """
    boards = _boards(loggers)
    if not boards or not watched.kept:
        return
    if len(watched.kept) <= MOST_LAYERS:
        left = [sum(counts) for counts in zip(*watched.kept.values(), strict=True)]
        _add(
            boards,
            f"{_place(label)}/layers_over_rounds",
            layers_over_rounds([masks.total / count for count in left], watched.kept),
        )
        for name, scores in watched.scores.items():
            _histogram(
                boards, f"{label}/{name}" if label else name, scores[masks[name].to(scores.device)]
            )
    sums = unit_sums(linearise(network, inputs), watched.scores)
    if sums:
        _add(
            boards,
            f"{_place(label)}/unit_scores",
            unit_scores({name: (a.tolist(), b.tolist()) for name, (a, b) in sums.items()}),
        )


def _histogram(boards: list[Any], name: str, scores: Tensor) -> None:
    """Of the magnitudes, as powers of ten: scores lie many of them apart. A score of zero has none
    and is left out.
    """
    scores = scores[:: max(1, len(scores) // _MOST_SCORES)]
    exponents = scores.abs().log10()
    exponents = exponents[exponents.isfinite()]
    if len(exponents):
        for board in boards:
            board.add_histogram(
                f"log10_scores/{name.removesuffix('.weight')}", exponents.cpu(), bins=60
            )


def _add(boards: list[Any], name: str, figure: Any, height: float = 0.7) -> None:
    # TensorBoard shows pictures a third of a page wide: in a smaller one, letters are larger.
    figure.set_size_inches(0.7 * figure.get_figwidth(), height * figure.get_figheight())
    for board in boards:
        board.add_figure(name, figure, close=False)


def show_hyperparameters(
    loggers: Iterable[Logger], settings: Mapping[str, Any], metrics: Iterable[str]
) -> None:
    """The row of this run in TensorBoard's HPARAMS tab. Its ``metrics`` are named now and take
    their values as they are logged, also by a later ``test`` that writes into the same run. Other
    loggers get the settings as their hyperparameters.
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
