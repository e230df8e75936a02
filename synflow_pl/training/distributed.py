"""Keep masks and weights equal on all ranks of a distributed training, and raise errors on all.

Rank 0 chooses the masks and broadcasts them, although every rank could compute them from the same
weights and data. In that case, a device that rounds differently, a file that differs between nodes
or a pruner that draws random numbers would make the masks differ. The ranks of one machine would
also compete for its cores, and a SyncBatchNorm would count each image once per rank. The other
ranks wait in a process group of their own, since NCCL aborts that of the training after ten
minutes.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

__all__ = ["Disagreement", "Ranks"]

_TIMEOUT = timedelta(days=7)
"""Time that the other ranks wait for rank 0."""

T = TypeVar("T")


class Disagreement(RuntimeError):
    """Error that is raised if a rank has other masks or weights than rank 0."""


class Ranks:
    """Collective operations on the ranks of one training.

    Every method except the constructor is collective: each rank has to call it, in the same order.
    Without a process group the methods send nothing.

    Args:
        trainer: Trainer whose strategy has set up its environment.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._rank, self._world = trainer.global_rank, trainer.world_size
        # DDP on one device has a process group as well. Using it there lets a machine with one GPU
        # test that objects and tensors can be sent.
        self._single = self._world == 1 and not isinstance(trainer.strategy, DDPStrategy)
        self._device = None if self._single else trainer.strategy.root_device

    def run_on_rank_zero(self, function: Callable[[], T], *, long_timeout: bool = False) -> T:
        """Call a function on rank 0 and return its result on every rank.

        Args:
            function: Function that is called on rank 0 only. Its result is pickled; tensors in it
                should be on the CPU.
            long_timeout: Whether the other ranks wait for up to 7 days. Otherwise they wait as
                long as the training's own process group lets them.

        Raises:
            Exception: On every rank, the exception that ``function`` raised on rank 0.
        """
        if self._single:
            return function()
        group: Any = distributed.new_group(timeout=_TIMEOUT) if long_timeout else None
        result, failure = None, None
        if self._rank == 0:
            try:
                result = function()
            # The other ranks are sent the error; otherwise they would wait until the timeout.
            except Exception as error:
                failure = error
        sent: list[Any] = [result, failure and _sendable(failure)]
        distributed.broadcast_object_list(sent, src=0, group=group)
        if group is not None:
            distributed.destroy_process_group(group)  # an NCCL group occupies GPU memory
        if (failure := failure or sent[1]) is not None:
            raise failure
        return sent[0]

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of rank 0 into the tensors of every rank, in place.

        Args:
            tensors: Tensors with the same shapes, in the same order on every rank.
        """
        if self._single:
            return
        for tensor in tensors:
            # broadcast() needs this memory format, and NCCL the device. The tensors of a strategy
            # that shards are still on the CPU when the network is pruned.
            values = tensor.detach().to(self._device).contiguous()
            distributed.broadcast(values, src=0)
            tensor.copy_(values)

    def assert_equal(self, **groups: Iterable[tuple[str, Tensor]]) -> None:
        """Check by a checksum that every rank has the same tensors.

        Args:
            groups: Named tensors, by a name for the group ("masks") that the message uses.

        Raises:
            Disagreement: On every rank, naming the ranks whose tensors differ from those of rank 0.
        """
        if self._single:
            return
        own = {name: _checksum(tensors) for name, tensors in groups.items()}
        checksums: list[Any] = [None] * self._world
        distributed.all_gather_object(checksums, own)
        for name in groups:
            different = [
                rank for rank, sums in enumerate(checksums) if sums[name] != checksums[0][name]
            ]
            if different:
                ranks = ", ".join(map(str, different))
                raise Disagreement(
                    f"the {name} of rank {ranks} are not those of rank 0; does every node read the"
                    " same checkpoint, and does nothing but the optimiser write to the network on"
                    f" rank {ranks}?"
                )


def _checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if isinstance(tensor, DTensor):  # every rank has another part of it
            continue
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sendable(error: Exception) -> Exception:
    """Return the error, or a RuntimeError with its message if pickling would change or fail it."""
    try:
        received = str(pickle.loads(pickle.dumps(error)))
    except Exception:  # the error's class may define pickling in any way
        received = None
    return (
        error
        if received == str(error)
        else RuntimeError(f"rank 0: {type(error).__name__}: {error}")
    )
