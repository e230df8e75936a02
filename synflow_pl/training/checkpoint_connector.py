"""Resuming: how the Trainer takes up a checkpoint, and which ones it cannot take up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.trainer.connectors.checkpoint_connector import _CheckpointConnector
from pytorch_lightning.utilities import rank_zero_info
from torch.optim import Optimizer

from synflow_pl.training.checkpoints import differences, under_names_of

__all__ = ["CheckpointConnector", "refuse"]

_Path = str | Path


class CheckpointConnector(_CheckpointConnector):
    """In place of Lightning's own: ``trainer._checkpoint_connector = Resuming(trainer)``.

    Args:
        trainer: whose checkpoints it takes up.
        told: called with the content of a checkpoint before it is restored.
        finished: whether the checkpoint is the end of its training, so that nothing is left to
            train; the first rank's counts.
    """

    # Lightning would take up any hpc_ckpt_* that lies about, a stranger's too.
    _hpc_resume_path = None

    def __init__(
        self,
        trainer: Trainer,
        told: Callable[[Mapping[str, Any]], None],
        finished: Callable[[], bool],
    ) -> None:
        super().__init__(trainer)
        self._told = told
        self._finished = finished

    def resume_start(
        self, checkpoint_path: _Path | None = None, weights_only: bool | None = None
    ) -> None:
        """Read the checkpoint that the first rank names."""
        path, finished = self.trainer.strategy.broadcast((checkpoint_path, self._finished()))
        super().resume_start(path, weights_only=weights_only)
        if "state_dict" in self._loaded_checkpoint:
            names = self.trainer.lightning_module.state_dict()
            self._loaded_checkpoint["state_dict"] = under_names_of(
                names, self._loaded_checkpoint["state_dict"]
            )
        # A callback or a time limit ended the training, and the loops of a checkpoint do not say
        # so.
        self.trainer.should_stop = self.trainer.should_stop or finished
        if path is not None and not finished:
            rank_zero_info(f"Going on from step {self._loaded_checkpoint['global_step']}: {path}")
            self._told(self._loaded_checkpoint)


def refuse(
    path: _Path,
    content: Mapping[str, Any],
    module: LightningModule,
    optimizers: Iterable[Optimizer] | None,
) -> None:
    """Refuse a checkpoint that cannot be taken up.

    Args:
        path: of the checkpoint.
        content: of the checkpoint.
        module: that its weights are loaded into.
        optimizers: that its states are loaded into, to train; ``None`` to evaluate.

    Raises:
        ValueError: if it holds too little, or is another network's or another optimiser's.
    """
    instead = f"start from its weights with --network_weights {path} in place of --ckpt_path"
    needed = (
        {"state_dict"}
        if optimizers is None
        else {"state_dict", "optimizer_states", "lr_schedulers", "loops"}
    )
    if not isinstance(content, Mapping) or not needed <= content.keys():
        raise ValueError(
            f"{str(path)!r} holds weights only, and a whole checkpoint is needed; {instead}, or give another checkpoint"
        )
    weights = module.state_dict()
    if told := differences(under_names_of(weights, content["state_dict"]), weights):
        raise ValueError(
            f"the checkpoint {str(path)!r} does not fit this network: {told}; give the options of the run that it is from, or"
            f" {instead} if it holds the weights of the network alone"
        )
    for optimizer, state in zip(
        optimizers or (),
        content["optimizer_states"] if optimizers is not None else (),
        strict=False,
    ):
        own, its = (
            {key for group in groups for key in group}
            for groups in (optimizer.param_groups, state["param_groups"])
        )
        if lacking := sorted(own - its - {"initial_lr"}):
            raise ValueError(
                f"model.optimizer: the checkpoint {str(path)!r} was not trained with {type(optimizer).__name__} (it has no"
                f" {', '.join(lacking)}); go on with the optimiser that it was trained with, or {instead}"
            )
