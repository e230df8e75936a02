"""How checkpoints reach the disk, and how they are read: never half, and never with code in
them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from synflow_pl.io import atomic_write
from synflow_pl.training.checkpoints import read

__all__ = ["DurableCheckpointIO"]


class DurableCheckpointIO(TorchCheckpointIO):
    """A plugin of the Trainer (``Trainer(plugins=[DurableCheckpointIO()])``).

    A checkpoint is written beside its target and then renamed, so that a kill or a full disk leaves
    the one before. Lightning's own writes to the temporary folder and moves, which between file
    systems is a copy in place.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write it.

        Raises:
            OSError: if that cannot be done; the checkpoint that was there before is whole.
        """
        with atomic_write(path) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read it, always with ``weights_only``.

        Raises:
            ValueError: if it cannot be read so, or ``weights_only`` is false.
        """
        if weights_only is False:
            raise ValueError(f"weights_only: false would let {str(path)!r} run code; leave it out")
        content: dict[str, Any] = read(path, map_location)
        return content
