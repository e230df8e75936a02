"""Check before training that the metrics that callbacks and schedules monitor will be logged."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.utilities.seed import isolate_rng

from synflow_pl.training.classifier import Classifier

__all__ = ["check_monitors"]

_OTHER_METRICS = (
    "train/gradient_norm",
    "train/images_per_second",
    "pruning/density",
    "pruning/effective_density",
    "epoch",
    "step",
)


def check_monitors(trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuse to train if a callback or schedule monitors a metric that is never logged.

    Lightning itself reports this at the end of the first epoch only. Modules other than
    :class:`~synflow_pl.training.Classifier` are not checked, since their metrics are unknown.

    Args:
        trainer: Trainer that is about to train, with its schedules configured.
        pl_module: Module that is trained.

    Raises:
        ValueError: If a monitored metric is never logged, naming the metric, the callback or
            schedule, and the remedy.
    """
    if not isinstance(pl_module, Classifier):
        return
    monitored = list(_monitored(trainer))
    if not monitored:
        return
    names = [
        str(name).removeprefix("train/") for name in ("train/loss", *pl_module.train_metrics.keys())
    ]
    validated = _validates(trainer)
    logged = [f"train/{name}" for name in names] + [f"val/{name}" for name in names if validated]
    if validated and getattr(getattr(trainer, "datamodule", None), "test_each_epoch", False):
        logged += [f"test_each_epoch/{name}" for name in names]
    for monitor, option, metric in monitored:
        if (
            metric in logged
            or metric in _OTHER_METRICS
            or metric.startswith("lr-")
            or "/dataloader_idx_" in metric
        ):
            continue
        if metric.startswith("val/") and not validated:
            raise ValueError(
                f"{option}: {monitor} monitors {metric!r}, but nothing is validated on; keep images"
                " for validation (data.val_size, trainer.limit_val_batches), or monitor"
                f" train/{metric.removeprefix('val/')}"
            )
        if not _has_custom_classes(trainer, pl_module):
            near = get_close_matches(metric, logged, n=1, cutoff=0)[0]
            raise ValueError(
                f"{option}: {monitor} monitors {metric!r}, which is never logged; did you mean"
                f" {near!r}?"
            )


def _has_custom_classes(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Return whether a class from outside synflow_pl and Lightning may log further metrics."""
    kinds = [type(pl_module), *(type(callback) for callback in trainer.callbacks)]  # type: ignore[attr-defined]
    return any(
        kind.__module__.partition(".")[0] not in ("synflow_pl", "pytorch_lightning")
        for kind in kinds
    )


def _monitored(trainer: Trainer) -> Iterator[tuple[str, str, str]]:
    """Yield, for each monitored metric, the class that monitors it, its option, and the metric."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # the trainer's connectors set it
        if isinstance(callback, (EarlyStopping, ModelCheckpoint)) and callback.monitor:
            yield type(callback).__name__, "trainer.callbacks", callback.monitor
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.monitor:
            yield type(config.scheduler).__name__, "model.scheduler", config.monitor


def _validates(trainer: Trainer) -> bool:
    """Return whether the training has validation batches."""
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    if not trainer.limit_val_batches or not source.is_defined():
        return False
    with isolate_rng():
        loaders = source.dataloader()
    return loaders is not None and not (isinstance(loaders, (list, tuple, dict)) and not loaders)
