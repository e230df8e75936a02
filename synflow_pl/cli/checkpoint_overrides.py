"""Overruled: where a checkpoint's own settings win over what the command says, it is said by
name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.utilities import rank_zero_info

from synflow_pl.cli.resume import differing
from synflow_pl.training.checkpoints import states

__all__ = ["checkpoint_overrides", "warn_of_overrides"]


def checkpoint_overrides(
    was: Mapping[str, Any],
    now: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    *,
    trains: bool,
    same_run: bool,
) -> list[str]:
    """Return the options that this command has otherwise than the run that a checkpoint is from,
    and that have no effect.

    Optimisers and schedules are restored with all that they were given, and weights too; a
    checkpoint that has masks is not pruned again. A run that is resumed in its own folder keeps the
    seed that its weights and masks were drawn with.

    Args:
        was: settings of the checkpoint's run, by option.
        now: settings of this command, by option.
        checkpoint: content of the checkpoint.
        trains: whether the checkpoint is resumed from, and not only evaluated.
        same_run: whether the run is resumed in its own folder.
    """
    fixed = ["model.optimizer.", "model.scheduler."]
    if not trains or any(state.get("masks") for state in states(checkpoint).values()):
        fixed.append("pruning.")
    if trains:
        fixed.append("network_weights")
    if trains and same_run:
        fixed.append("seed_everything")
    keys = [key for key in differing(was, now) if f"{key}.".startswith(tuple(fixed))]
    return [
        key for key in keys if not (trains and key == "pruning.compact")
    ]  # that one the callback refuses


def warn_of_overrides(
    was: Mapping[str, Any],
    now: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    *,
    trains: bool,
    same_run: bool,
) -> None:
    """Name the options that :func:`checkpoint_overrides` returns for the same arguments.

    Raises:
        ValueError: if training would be resumed with another optimiser or schedule.
    """
    keys = differing(was, now)
    for key in ("model.optimizer.class_path", "model.scheduler.class_path"):
        if trains and key in keys:
            raise ValueError(
                f"{key}: the checkpoint was trained with {was.get(key)}, not {now.get(key)}, whose state it cannot give; go on with"
                " that one, or start from the weights with --network_weights in place of --ckpt_path"
            )
    for key in checkpoint_overrides(was, now, checkpoint, trains=trains, same_run=same_run):
        rank_zero_info(
            f"{key}: {now.get(key)} has no effect; the checkpoint's {was.get(key)} stays."
        )
