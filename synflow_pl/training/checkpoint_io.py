"""Write checkpoints atomically and read them without running code from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from synflow_pl.io import atomic_write
from synflow_pl.training.checkpoints import read
from synflow_pl.training.sharded_files import is_sharded, read_shards

__all__ = ["DurableCheckpointIO"]


class DurableCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically, as a plugin of the Trainer.

    A checkpoint is written to a temporary file in the target's folder and then renamed, so that a
    killed process or a full disk leaves the previous checkpoint intact. Lightning's own plugin
    writes to the system's temporary folder and moves the file, which is not atomic between file
    systems.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from synflow_pl.training import DurableCheckpointIO
        >>> trainer = Trainer(plugins=[DurableCheckpointIO()], logger=False, accelerator="cpu")
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint atomically.

        Args:
            checkpoint: Content of the checkpoint.
            path: Path of the file that is written or replaced.
            storage_options: Ignored; part of Lightning's interface.

        Raises:
            OSError: If the file cannot be written; a checkpoint that was there before is intact.
        """
        with atomic_write(path) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint, always with ``weights_only=True``.

        Args:
            path: Path of the checkpoint, a file or the folder of a distributed checkpoint.
            map_location: Device of the tensors, as for :func:`torch.load`.
            weights_only: ``True`` or ``None``, which mean the same.

        Raises:
            ValueError: If the file cannot be read in this way, or ``weights_only`` is false.
        """
        if weights_only is False:
            raise ValueError(f"weights_only: false would let {str(path)!r} run code; leave it out")
        if is_sharded(path):
            return read_shards(Path(path))
        content: dict[str, Any] = read(path, map_location)
        return content
