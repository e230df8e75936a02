"""Find the averaged copies of a network that Lightning's callbacks maintain during training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging

__all__ = ["averaged_models", "refuse_mid_epoch"]


def averaged_models(trainer: Trainer) -> Iterator[LightningModule]:
    """Yield the averaged copies of the LightningModule.

    Masks have to be applied to the copies as well. They were made when the fit was set up, before
    there were masks, so their pruned weights would decay towards zero instead of being zero.

    Args:
        trainer: Trainer whose callbacks are searched.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # the trainer's connectors set it
        copy: Any = getattr(callback, "_average_model", None)
        if isinstance(callback, WeightAveraging) and copy is not None:
            yield copy.module
        elif isinstance(callback, StochasticWeightAveraging) and copy is not None:
            yield copy


def refuse_mid_epoch(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Refuse to resume StochasticWeightAveraging within an epoch.

    Lightning would skip the callback's schedule for the rest of the epoch, and so train with other
    learning rates than an uninterrupted run.

    Args:
        trainer: Trainer that is about to resume.
        checkpoint: Content of the checkpoint that it resumes from.

    Raises:
        ValueError: If averaging had begun when the checkpoint was written and its epoch had not
            ended.
    """
    counts = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("total")
    if not counts or counts["processed"] == counts["ready"]:
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # the trainer's connectors set it
        if isinstance(callback, StochasticWeightAveraging):
            state = checkpoint.get("callbacks", {}).get(callback.state_key) or {}
            if state.get("scheduler_state") is not None:
                raise ValueError(
                    f"{type(callback).__name__} cannot resume in the middle of epoch"
                    f" {checkpoint.get('epoch')}, since Lightning would train the rest of it with"
                    " another learning rate; resume from a checkpoint that was written at the end"
                    " of an epoch (ModelCheckpoint with save_on_train_epoch_end=True), or leave the"
                    " callback out"
                )
