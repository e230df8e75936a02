"""Checkpoints: where masks are kept in one, where one is kept in a run, and how to get the plain network back out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synflow_pl.masks import Masks

__all__ = ["KEY", "find_checkpoint", "load_masks", "load_weights"]

KEY = "synflow_pl"
"""The key of a checkpoint that holds ``masks`` (Masks.state_dict) and ``network``, the prefix of the network's weights."""


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The checkpoint that ``path`` means: a file itself, or the last one of a run's folder.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}; expected a .ckpt file or a run's folder such as lightning_logs/NAME")
    found = sorted((path / "checkpoints").glob("*.ckpt"), key=lambda file: (file.name == "last.ckpt", file.stat().st_mtime))
    if not found:
        raise FileNotFoundError(
            f"the run {str(path)!r} has no checkpoint (none in {str(path / 'checkpoints')!r}); did its training end?"
        )
    return found[-1]


def load_weights(network: nn.Module, checkpoint: str | os.PathLike[str]) -> nn.Module:
    """Load the trained weights of a checkpoint, or of a run, into the plain network.

    Strict: every parameter and buffer must be there, nothing else may be. Read with ``weights_only``, so that a stranger's file
    cannot run code.

    Args:
        network: of the kind that was trained; filled in place.
        checkpoint: a ``.ckpt`` file or a run's folder.

    Returns:
        The network.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it is for another network.
    """
    path = find_checkpoint(checkpoint)
    content: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    prefix = content.get(KEY, {}).get("network", "network.")
    state = {name.removeprefix(prefix): value for name, value in content["state_dict"].items() if name.startswith(prefix)}
    if not state:
        raise ValueError(f"{str(path)!r} holds no weight whose name begins with {prefix!r}; was it written by another program?")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        first = " ".join(str(error).split("\n\t")[1:2]) or str(error)
        raise ValueError(f"{str(path)!r} does not fit {type(network).__name__}: {first}") from error
    return network


def load_masks(checkpoint: str | os.PathLike[str]) -> Masks | None:
    """The masks that a checkpoint, or a run's last one, was trained under; ``None`` if it was trained dense.

    Raises:
        FileNotFoundError: if there is no checkpoint.
    """
    content: Mapping[str, Any] = torch.load(find_checkpoint(checkpoint), map_location="cpu", weights_only=True)
    state = content.get(KEY, {}).get("masks")
    return None if state is None else Masks.from_state_dict(state)
