"""Warn that an evaluation has no trained weights."""

from __future__ import annotations

from jsonargparse import Namespace
from pytorch_lightning.utilities import rank_zero_warn

__all__ = ["warn_untrained"]

_TRAINED = ("weights", "pretrained")  # arguments of networks that load trained weights


def warn_untrained(subcommand: str, options: Namespace) -> None:
    """Warn if ``validate``, ``test`` or ``predict`` would evaluate random weights.

    Args:
        subcommand: Name of the subcommand.
        options: Options of the subcommand. Trained weights come from ``ckpt_path``,
            ``network_weights``, or an argument of the network.
    """
    arguments = options.model.network.get("init_args") or {}
    trained = any(arguments.get(name) for name in _TRAINED)
    if options.get("ckpt_path") is None and options.network_weights is None and not trained:
        rank_zero_warn(
            f"{subcommand} evaluates an untrained dense network with random weights, since no "
            "checkpoint is given; add --ckpt_path with a run's folder or a checkpoint, or "
            "--network_weights with a file of weights"
        )
