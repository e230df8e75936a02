"""Resume training from a checkpoint, and refuse checkpoints that cannot be resumed from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.trainer.connectors.checkpoint_connector import _CheckpointConnector
from pytorch_lightning.utilities import rank_zero_info
from torch.optim import Optimizer

from synflow_pl.training.state_dict_matching import differences, under_names_of

__all__ = ["CheckpointConnector", "refuse"]

_Path = str | Path


class CheckpointConnector(_CheckpointConnector):
    """Restore checkpoints in place of Lightning's own connector.

    It replaces the connector of a Trainer:
    ``trainer._checkpoint_connector = CheckpointConnector(trainer, on_resume, finished)``.

    Args:
        trainer: Trainer that is resumed.
        on_resume: Function that is called with the content of a checkpoint before it is restored.
        finished: Function that returns whether the checkpoint is the end of its training, so that
            nothing is left to train. The answer of rank 0 counts.
    """

    # Lightning would load any hpc_ckpt_* file in the folder, even one of another run.
    _hpc_resume_path = None

    def __init__(
        self,
        trainer: Trainer,
        on_resume: Callable[[Mapping[str, Any]], None],
        finished: Callable[[], bool],
    ) -> None:
        super().__init__(trainer)
        self._on_resume = on_resume
        self._finished = finished

    def resume_start(
        self, checkpoint_path: _Path | None = None, weights_only: bool | None = None
    ) -> None:
        """Load the checkpoint that rank 0 names, on every rank."""
        path, finished = self.trainer.strategy.broadcast((checkpoint_path, self._finished()))
        super().resume_start(path, weights_only=weights_only)
        if "state_dict" in self._loaded_checkpoint:
            names = self.trainer.lightning_module.state_dict()
            self._loaded_checkpoint["state_dict"] = under_names_of(
                names, self._loaded_checkpoint["state_dict"]
            )
        # A callback or a time limit may have ended the training, which the state of the loops in
        # the checkpoint does not show.
        self.trainer.should_stop = self.trainer.should_stop or finished
        if path is not None and not finished:
            rank_zero_info(f"Resuming from step {self._loaded_checkpoint['global_step']}: {path}")
            self._on_resume(self._loaded_checkpoint)


def refuse(
    path: _Path,
    content: Mapping[str, Any],
    module: LightningModule,
    optimizers: Iterable[Optimizer] | None,
) -> None:
    """Refuse a checkpoint that does not fit a module or its optimisers.

    Args:
        path: Path of the checkpoint.
        content: Content of the checkpoint.
        module: Module that the weights are loaded into.
        optimizers: Optimisers that their states are loaded into; ``None`` to evaluate.

    Raises:
        ValueError: If the checkpoint lacks a part that is needed, or belongs to another network or
            another optimiser.
    """
    instead = f"start from its weights with --network_weights {path} in place of --ckpt_path"
    needed = (
        {"state_dict"}
        if optimizers is None
        else {"state_dict", "optimizer_states", "lr_schedulers", "loops"}
    )
    if not isinstance(content, Mapping) or not needed <= content.keys():
        raise ValueError(
            f"{str(path)!r} holds weights only, and a whole checkpoint is needed; {instead}, or"
            " give another checkpoint"
        )
    weights = module.state_dict()
    if difference := differences(under_names_of(weights, content["state_dict"]), weights):
        raise ValueError(
            f"the checkpoint {str(path)!r} does not fit this network: {difference}; give the"
            f" options of the run that it is from, or {instead} if it holds the weights of the"
            " network alone"
        )
    for optimizer, state in zip(
        optimizers or (),
        content["optimizer_states"] if optimizers is not None else (),
        strict=False,
    ):
        own, stored = (
            {key for group in groups for key in group}
            for groups in (optimizer.param_groups, state["param_groups"])
        )
        if missing := sorted(own - stored - {"initial_lr"}):
            raise ValueError(
                f"model.optimizer: the checkpoint {str(path)!r} was not trained with"
                f" {type(optimizer).__name__} (it has no {', '.join(missing)}); use the optimiser"
                f" that it was trained with, or {instead}"
            )
