"""Published accuracies of Figure 6 of Tanaka et al. 2020: the best epoch on the test set.

PUBLISHED.md in this folder gives their source and caveats.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files

from synflow_pl.runs.run_record import RunRecord

__all__ = ["Published", "published"]

_DATA = {"CIFAR10": "cifar10", "CIFAR100": "cifar100", "TinyImageNet": "tiny-imagenet"}
_PRUNERS = {
    "rand": "random",
    "mag": "magnitude",
    "snip": "snip",
    "grasp": "grasp_inverted",
    "synflow": "synflow",
}


@dataclass(frozen=True)
class Published:
    """Published accuracies of one pruner, by compression.

    Attributes:
        pruner: Name of the overlay of the pruner.
        compression: Compressions, each at least 1.
        mean: Mean accuracy at each compression, in [0, 1].
        deviation: Standard deviation of the accuracy at each compression, in [0, 1].
    """

    pruner: str
    compression: tuple[float, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def published(run: RunRecord) -> list[Published]:
    """Return the published curves for the network and the data set of a run.

    Args:
        run: Run whose network and data set are looked up.

    Returns:
        One curve for each published pruner; empty if nothing was published.
    """
    data, model = _DATA.get(run.data), _model(run)
    text = files(__package__).joinpath("published.csv").read_text()
    rows = [
        row
        for row in csv.DictReader(text.splitlines())
        if (row["dataset"], f"{row['model_class']} {row['model']}") == (data, model)
    ]
    curves = []
    for theirs, ours in _PRUNERS.items():
        of = [row for row in rows if row["pruner"] == theirs]
        if of:
            compression = tuple(10 ** float(row["log10_compression"]) for row in of)
            mean, deviation = (
                tuple(float(row[f"best_epoch_top1_{part}"]) / 100 for row in of)
                for part in ("mean", "std")
            )
            curves.append(Published(ours, compression, mean, deviation))
    return curves


def _model(run: RunRecord) -> str | None:
    """Return the authors' name of the network of a run, or ``None`` if they did not use it."""
    get = {
        name.removeprefix("network.init_args."): value for name, value in run.setting.items()
    }.get
    kind, depth = run.network.partition("-")[0], get("depth")
    if kind in ("VGG", "TinyVGG"):
        return (
            f"{'lottery' if kind == 'VGG' else 'tiny'} vgg{depth}-bn"
            if get("batch_norm", True)
            else None
        )
    return f"tiny resnet{depth}" if kind == "TinyResNet" and get("width_factor", 1) == 1 else None
