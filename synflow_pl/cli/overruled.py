"""Overruled: where a checkpoint's own settings win over what the command says, it is said by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.utilities import rank_zero_info

from synflow_pl.cli.resume import differing
from synflow_pl.training.checkpoints import states

__all__ = ["overruled"]


def overruled(was: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Mapping[str, Any], *, trains: bool) -> None:
    """Name the options that this command has otherwise than the run that a checkpoint is from, and that have no effect.

    Optimisers and schedules are restored with all that they were given; a checkpoint that has masks is not pruned again.

    Args:
        was: settings of the checkpoint's run.
        now: settings of this command.
        checkpoint: its content.
        trains: whether training goes on.

    Raises:
        ValueError: if training would go on with another optimiser or schedule.
    """
    keys = differing(was, now)
    for key in ("model.optimizer.class_path", "model.scheduler.class_path"):
        if trains and key in keys:
            raise ValueError(
                f"{key}: the checkpoint was trained with {was.get(key)}, not {now.get(key)}, whose state it cannot give; go on with"
                " that one, or start from the weights with --network_weights in place of --ckpt_path"
            )
    fixed = ["model.optimizer.", "model.scheduler."] + (
        ["pruning."] if not trains or any(state.get("masks") for state in states(checkpoint).values()) else []
    )
    for key in keys:
        if key.startswith(tuple(fixed)) and not (trains and key == "pruning.compact"):  # that one the callback refuses
            rank_zero_info(f"{key}: {now.get(key)} has no effect; the checkpoint's {was.get(key)} stays.")
