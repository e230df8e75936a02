"""Averages: the copies of a network that Lightning's callbacks keep beside it while it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging

__all__ = ["averages"]


def averages(trainer: Trainer) -> Iterator[LightningModule]:
    """The averaged copies of the module, taken when the fit was set up. A mask has to be applied to them as well: they were copied
    before there were masks, and would fade towards the zeros instead of holding them.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # the trainer's connectors set it
        copy: Any = getattr(callback, "_average_model", None)
        if isinstance(callback, WeightAveraging) and copy is not None:
            yield copy.module
        elif isinstance(callback, StochasticWeightAveraging) and copy is not None:
            yield copy
