"""Options of a command that have no effect because the checkpoint's own settings override them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning.utilities import rank_zero_info

from synflow_pl.cli.resume import differing_options
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
    """Return the options that differ from the checkpoint's run and that the checkpoint overrides.

    A checkpoint restores optimisers and schedules with their arguments, and the weights. A network
    whose checkpoint has masks is not pruned again. A run that is resumed in its own folder keeps
    the seed with which its weights and masks were drawn.

    Args:
        was: Settings of the checkpoint's run, by option.
        now: Settings of this command, by option.
        checkpoint: Content of the checkpoint.
        trains: Whether training is resumed from the checkpoint; otherwise it is only evaluated.
        same_run: Whether the run is resumed in its own folder.

    Returns:
        Names of the options, in alphabetical order.
    """
    fixed = ["model.optimizer.", "model.scheduler."]
    if not trains or any(state.get("masks") for state in states(checkpoint).values()):
        fixed.append("pruning.")
    if trains:
        fixed.append("network_weights")
    if trains and same_run:
        fixed.append("seed_everything")
    keys = [key for key in differing_options(was, now) if f"{key}.".startswith(tuple(fixed))]
    # PruneAtInit itself refuses another value of `compact` when training is resumed.
    return [key for key in keys if not (trains and key == "pruning.compact")]


def warn_of_overrides(
    was: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str], *, trains: bool
) -> None:
    """Print a note for each option that the checkpoint overrides.

    Args:
        was: Settings of the checkpoint's run, by option.
        now: Settings of this command, by option.
        keys: Names of the options, from :func:`checkpoint_overrides`.
        trains: Whether training is resumed from the checkpoint.

    Raises:
        ValueError: If training would be resumed with another optimiser or schedule.
    """
    for key in ("model.optimizer.class_path", "model.scheduler.class_path"):
        if trains and key in keys:
            raise ValueError(
                f"{key}: the checkpoint was trained with {was.get(key)}, not {now.get(key)}, whose "
                "state it does not hold; resume with that one, or start from the weights with "
                "--network_weights in place of --ckpt_path"
            )
    for key in keys:
        rank_zero_info(
            f"{key}: {now.get(key)} has no effect; the checkpoint's {was.get(key)} stays."
        )
