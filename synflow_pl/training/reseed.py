"""Reseed: what a training step draws is a function of seed, rank and batch, so that a resumed run
draws the same.

Restoring the generator's state instead fails where something else draws between the checkpoint and
the next step.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn

from synflow_pl.data.counter_rng import random_numbers

__all__ = ["Reseed"]


class Reseed(Callback):
    """Seeds torch's generators before every epoch and every training batch (dropout, a pruner that
    draws).

    The seed is that of Lightning's ``seed_everything``, which it keeps in the environment. Sums
    depend on the number of threads in their last bits, so that number travels in the checkpoint,
    and another one is warned of.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """For what is drawn between two epochs, such as masks: alike on all ranks."""
        self._seed(pl_module.device, -1, trainer.fit_loop.total_batch_idx)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """For what the step draws."""
        self._seed(pl_module.device, trainer.global_rank, trainer.fit_loop.total_batch_idx)

    def _seed(self, device: torch.device, rank: int, batch: int) -> None:
        seed = int(
            random_numbers(int(os.environ.get("PL_GLOBAL_SEED", 0)), rank, torch.tensor([batch]))
        )
        if device.type == "cpu":
            # The same without a look at devices that nothing is drawn on, which took an eighth of a
            # small network's step.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        return {"threads": torch.get_num_threads()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (was := state_dict["threads"]) != (now := torch.get_num_threads()):
            rank_zero_warn(
                f"The checkpoint was trained with {was} threads and this process has {now}, so sums may differ in their last bits; for"
                f" the same bits set OMP_NUM_THREADS={was}."
            )
