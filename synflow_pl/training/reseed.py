"""Make random numbers of a training step a function of seed, rank and batch.

A resumed run then draws the same numbers as an uninterrupted one. Restoring the generator's state
from the checkpoint would not suffice: other code may draw between the checkpoint and the next step.
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
    """Seed torch's generators before every epoch and every training batch.

    The random numbers of dropout, or of a pruner that prunes during training, then depend on the
    seed of Lightning's ``seed_everything``, the rank and the batch only. The last bits of sums
    depend on the number of threads, so that number is stored in the checkpoint, and resuming with
    another one gives a warning.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from synflow_pl.training import Reseed
        >>> trainer = Trainer(callbacks=[Reseed()], logger=False, accelerator="cpu")
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed what is drawn between two epochs, such as masks, equally on all ranks."""
        self._seed(pl_module.device, -1, trainer.fit_loop.total_batch_idx)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Seed what the training step draws, differently on each rank."""
        self._seed(pl_module.device, trainer.global_rank, trainer.fit_loop.total_batch_idx)

    def _seed(self, device: torch.device, rank: int, batch: int) -> None:
        seed = int(
            random_numbers(int(os.environ.get("PL_GLOBAL_SEED", 0)), rank, torch.tensor([batch]))
        )
        if device.type == "cpu":
            # torch.manual_seed() also seeds devices that are not used, which took an eighth of a
            # small network's step.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        return {"threads": torch.get_num_threads()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (was := state_dict["threads"]) != (now := torch.get_num_threads()):
            rank_zero_warn(
                f"The checkpoint was trained with {was} threads and this process has {now}, so sums"
                f" may differ in their last bits; for the same bits set OMP_NUM_THREADS={was}."
            )
