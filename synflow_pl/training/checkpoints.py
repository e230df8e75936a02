"""Find and read checkpoints, and the masks that are stored in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from synflow_pl.masks import Masks
from synflow_pl.training.sharded_files import is_sharded, leftover, outline, read_shards

__all__ = [
    "KEY",
    "attribute_of",
    "find_checkpoint",
    "load_masks",
    "prefix_of",
    "read",
    "read_outline",
    "states",
]

KEY = "synflow_pl"
"""Key of a checkpoint under which PruneAtInit stores its state.

The state has the entries ``network``, the prefix of the network's weights, and ``masks``
(``Masks.state_dict()``). With several PruneAtInit in one Trainer, the entry ``networks`` maps each
prefix to such a state.
"""


def states(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each PruneAtInit stored in a checkpoint, by the prefix of its network's weights.

    Args:
        content: Content of the checkpoint.

    Returns:
        State of each callback, under a prefix such as ``"network."``; empty if the checkpoint was
        written without PruneAtInit.
    """
    stored = content.get(KEY)
    if not stored:
        return {}
    networks: dict[str, dict[str, Any]] = (
        stored["networks"] if "networks" in stored else {stored.get("network", "network."): stored}
    )
    return networks


def attribute_of(prefix: str) -> str:
    """Return the attribute of the LightningModule that a prefix of parameter names stands for.

    The part that ``torch.compile`` adds to names is left out.

    Args:
        prefix: Prefix such as ``"network."`` or ``"network._orig_mod."``.
    """
    return prefix.replace("_orig_mod.", "").removesuffix(".")


def prefix_of(content: Mapping[str, Any], path: Path, attribute: str | None) -> str:
    """Return the prefix of the weights of one pruned network in a checkpoint.

    Args:
        content: Content of the checkpoint.
        path: Path of the checkpoint, for the message.
        attribute: Attribute of the LightningModule that holds the network; not used if the
            checkpoint has a single pruned network.

    Raises:
        ValueError: If there are several pruned networks and ``attribute`` names none of them.
    """
    stored = states(content)
    if len(stored) <= 1:
        return next(iter(stored), "network.")
    chosen = next(
        (
            prefix
            for prefix in stored
            if attribute is not None and attribute_of(prefix) == attribute
        ),
        None,
    )
    if chosen is None:
        names = ", ".join(repr(attribute_of(prefix)) for prefix in stored)
        asked = "none is asked for" if attribute is None else f"{attribute!r} is none of them"
        raise ValueError(
            f"{str(path)!r} holds several pruned networks, {names}, and {asked}; give attribute="
            " one of these names"
        )
    return chosen


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Return the path of a checkpoint, given a checkpoint or the folder of a run.

    Args:
        path: Path of a file or of a distributed checkpoint, which is returned as it is, or of a
            run's folder, of which ``checkpoints/last.ckpt`` is returned, else the checkpoint
            written last.

    Raises:
        FileNotFoundError: If there is no such file, or the run has no checkpoint.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from synflow_pl.training import find_checkpoint
        >>> with TemporaryDirectory() as run:
        ...     checkpoint = Path(run, "checkpoints", "last.ckpt")
        ...     checkpoint.parent.mkdir()
        ...     checkpoint.touch()
        ...     find_checkpoint(run).name
        'last.ckpt'
    """
    path = Path(path)
    path = leftover(path) or path
    if path.is_file() or is_sharded(path):
        return path
    if not path.is_dir():
        raise FileNotFoundError(
            f"no checkpoint at {str(path)!r}; expected a file of weights or a run's folder such as"
            " lightning_logs/NAME"
        )
    checkpoints = sorted(
        [
            file
            for file in (path / "checkpoints").glob("*.ckpt")
            if file.is_file() or is_sharded(file)
        ],
        key=lambda file: (file.name == "last.ckpt", file.stat().st_mtime),
    )
    if (last := leftover(path / "checkpoints" / "last.ckpt")) is not None:
        return last
    if not checkpoints:
        raise FileNotFoundError(
            f"the run {str(path)!r} has no checkpoint (none in {str(path / 'checkpoints')!r}); did"
            " its training end?"
        )
    return checkpoints[-1]


def read(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """Return the content of a file that ``torch.save`` wrote, without running code from it.

    A distributed checkpoint is returned without the states of the optimisers, with whole tensors on
    the CPU.

    Args:
        path: Path of the file, which is read with ``weights_only=True``, or of the folder.
        map_location: Device of the tensors of a file, as for :func:`torch.load`.

    Raises:
        ValueError: If the file cannot be read with ``weights_only=True``.
    """
    if is_sharded(path):
        return read_shards(Path(path), ("state_dict", KEY))
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    # Unpickling arbitrary bytes may raise an exception of any class.
    except Exception as error:
        first = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"{str(path)!r} cannot be read with weights_only; it is damaged, holds code, or is no"
            f" file of torch: {first}"
        ) from error


def read_outline(path: str | os.PathLike[str]) -> Any:
    """Return the content of a checkpoint, of a distributed one with tensors on the meta device.

    Args:
        path: Path of a file or of a distributed checkpoint, as for :func:`read`.

    Raises:
        ValueError: As :func:`read`.
    """
    return outline(Path(path)) if is_sharded(path) else read(path)


def load_masks(checkpoint: str | os.PathLike[str], attribute: str | None = None) -> Masks | None:
    """Return the masks in a checkpoint, or ``None`` if its network was trained dense.

    Args:
        checkpoint: Path of a checkpoint or of a run's folder, whose last checkpoint is read.
        attribute: Attribute of the LightningModule whose masks are returned; needed only for a
            checkpoint of several pruned networks.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If it holds several pruned networks and ``attribute`` names none of them.
    """
    path = find_checkpoint(checkpoint)
    content: Mapping[str, Any] = read(path)
    state = states(content).get(prefix_of(content, path, attribute), {}).get("masks")
    return None if state is None else Masks.from_state_dict(state)
