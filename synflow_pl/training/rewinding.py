"""Multi-shot pruning: train, cut a little, rewind, train again (Frankle & Carbin 2019, "The lottery
ticket hypothesis").

Level 0 trains the dense network. Each later level is a run of its own: it ranks the weights that
the level before ended with, removes some more of them, puts the survivors back to what they were
after epoch k of level 0 (k = 0 is the initialisation; Frankle et al. 2020 rewind to a little
later), and trains them from there to the original end: step count and schedule go on from epoch k,
momentum starts anew.
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
"""In the run of level 0: what later levels start from."""
_ENDED = "level.json"


def level_density(density: float | Fraction, level: int, levels: int) -> Fraction:
    """Density of level ``level`` of ``levels``: ``density ** (level / levels)``, exactly 1 at level
    0 and ``density`` at the last.

    Raises:
        ValueError: unless the density is in (0, 1].
    """
    target = as_density(density)
    return target if level == levels else SCHEDULES["exponential"](target, Fraction(level, levels))


class RewindPoint(Callback):
    """Writes ``rewind.ckpt`` into the run after ``epoch`` epochs: weights, step count and schedule,
    but no momentum and no masks.

    Args:
        epoch: epochs of training before it, at least 0; 0 is the initialisation.

    Raises:
        ValueError: for a negative epoch.
    """

    def __init__(self, epoch: int = 0) -> None:
        if epoch < 0:
            raise ValueError(f"epoch: {epoch} must be a whole number of epochs, at least 0")
        self.epoch = epoch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let no rank wait for a metric while another saves."""
        compute_on_all_ranks(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the initialisation, if that is asked for."""
        if self.epoch == 0 and trainer.global_step == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, if this was the last epoch before."""
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
            checkpoint["callbacks"] = {}  # they speak of the run that they were saved in
            for state in states(checkpoint).values():
                state.pop("masks", None)
            with atomic_write(path) as file:
                torch.save(checkpoint, file)
            unfinished.unlink()


def resumable(run: Path, rewind: int | None) -> Path | None:
    """The checkpoint that a stopped level goes on from; ``None`` if it has to start again.

    Args:
        run: of the level.
        rewind: epoch that level 0 has to keep for the others, ``None`` for another level. Stopped
            after that epoch, but before it was written, level 0 starts again.
    """
    try:
        found = find_checkpoint(run)
    except FileNotFoundError:
        return None
    if rewind is None or (run / REWIND).is_file():
        return found
    return found if read(found)["epoch"] + 1 < rewind else None


def ended(run: Path) -> bool:
    """Whether the level that trained in this run has come to its end."""
    return (run / _ENDED).is_file()


def mark_ended(run: Path, level: int, levels: int, rewind: int, density: float) -> None:
    """Note that it has, and which level it was."""
    with atomic_write(run / _ENDED) as file:
        file.write(
            json.dumps(
                {"level": level, "levels": levels, "rewind": rewind, "density": density}
            ).encode()
            + b"\n"
        )
