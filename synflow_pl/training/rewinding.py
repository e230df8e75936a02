"""Train, prune, rewind and train again, level by level (multi-shot pruning).

This is iterative magnitude pruning with rewinding (Frankle & Carbin 2019, "The lottery ticket
hypothesis"). Level 0 trains the dense network. Each later level is a run of its own: it scores the
final weights of the previous level, prunes some more of them, resets the kept weights to their
values after epoch k of level 0, and trains from there to the original end. The step count and the
schedule resume from epoch k; momentum starts at zero. k = 0 is the initialisation; Frankle et al.
2020, "Linear mode connectivity and the lottery ticket hypothesis", rewind to an early epoch.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from synflow_pl.io import atomic_write
from synflow_pl.schedules import SCHEDULES, as_density
from synflow_pl.training.checkpoints import find_checkpoint, read, states
from synflow_pl.training.collective_metrics import compute_on_all_ranks

__all__ = ["REWIND", "RewindPoint", "ended", "level_density", "mark_ended", "resumable"]

REWIND = "rewind.ckpt"
"""Name of the checkpoint in the run of level 0 from which later levels start."""
_ENDED = "level.json"


def level_density(density: float | Fraction, level: int, levels: int) -> Fraction:
    """Return the density of one level, ``density ** (level / levels)``.

    Args:
        density: Density of the last level, in (0, 1].
        level: Index of the level, from 0 to ``levels``.
        levels: Index of the last level.

    Returns:
        The density, which is exactly 1 at level 0 and exactly ``density`` at the last level.

    Raises:
        ValueError: If the density is not in (0, 1].
    """
    target = as_density(density)
    return target if level == levels else SCHEDULES["exponential"](target, Fraction(level, levels))


class RewindPoint(Callback):
    """Save the checkpoint that later levels of multi-shot pruning are rewound to.

    ``rewind.ckpt`` in the run's folder has the weights, step count and schedule after ``epoch``
    epochs, but no momentum and no masks.

    Args:
        epoch: Number of epochs of training before the checkpoint, at least 0; 0 is the
            initialisation.

    Raises:
        ValueError: If ``epoch`` is negative.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from synflow_pl.training import RewindPoint
        >>> trainer = Trainer(callbacks=[RewindPoint(epoch=2)], logger=False, accelerator="cpu")
    """

    def __init__(self, epoch: int = 0) -> None:
        if epoch < 0:
            raise ValueError(f"epoch: {epoch} must be a whole number of epochs, at least 0")
        self.epoch = epoch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prevent a deadlock of a rank that reads a metric with a rank that saves."""
        compute_on_all_ranks(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the initialisation if ``epoch`` is 0."""
        if self.epoch == 0 and trainer.global_step == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the checkpoint after epoch number ``epoch``."""
        if trainer.current_epoch + 1 == self.epoch:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        path = Path(trainer.log_dir or trainer.default_root_dir) / REWIND
        unfinished = path.with_suffix(".unfinished")
        trainer.save_checkpoint(unfinished, weights_only=False)
        if trainer.is_global_zero:
            checkpoint: dict[str, Any] = read(unfinished)
            for state in checkpoint["optimizer_states"]:
                state["state"] = {}
            checkpoint["callbacks"] = {}  # their states are specific to the run of level 0
            for state in states(checkpoint).values():
                state.pop("masks", None)
            with atomic_write(path) as file:
                torch.save(checkpoint, file)
            unfinished.unlink()


def resumable(run: Path, rewind: int | None) -> Path | None:
    """Return the checkpoint from which a stopped level resumes, or ``None`` if it must start again.

    Args:
        run: Folder of the run.
        rewind: Epoch of the checkpoint that level 0 writes for later levels; ``None`` for another
            level. If level 0 was stopped after that epoch without having written the checkpoint,
            it must start again.
    """
    try:
        checkpoint = find_checkpoint(run)
    except FileNotFoundError:
        return None
    if rewind is None or (run / REWIND).is_file():
        return checkpoint
    return checkpoint if read(checkpoint)["epoch"] + 1 < rewind else None


def ended(run: Path) -> bool:
    """Return whether the level that trains in this run is completed.

    Args:
        run: Folder of the run.
    """
    return (run / _ENDED).is_file()


def mark_ended(run: Path, level: int, levels: int, rewind: int, density: float) -> None:
    """Record in a run that its level is completed, and the numbers of that level.

    Args:
        run: Folder of the run.
        level: Index of the level, from 0.
        levels: Index of the last level.
        rewind: Epoch of level 0 that later levels are rewound to.
        density: Density of the level.
    """
    with atomic_write(run / _ENDED) as file:
        file.write(
            json.dumps(
                {"level": level, "levels": levels, "rewind": rewind, "density": density}
            ).encode()
            + b"\n"
        )
