"""Agreement: the ranks of a distributed training hold the same masks and weights, and fail
together.

The first rank decides and the others wait. All could decide for themselves, since they see the same
weights and the same data, but then a device that rounds otherwise, a file that differs from node to
node or a pruner that draws at random would have to be found out afterwards; on one machine they
would also take each other's cores, and a normalisation that is synchronised would count each image
once for each rank. Waiting takes a process group of its own: in that of the training NCCL gives up
after ten minutes.
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

__all__ = ["Disagreement", "Ranks"]

_PATIENCE = timedelta(days=7)
"""How long the others wait for the first."""

T = TypeVar("T")


class Disagreement(RuntimeError):
    """A rank holds other masks or weights than the first one."""


class Ranks:
    """The ranks of one training; without a process group there is nothing to agree on, and nothing
    is sent.

    Every method but the constructor is collective: each rank has to call it, in the same order.

    Args:
        trainer: with its strategy's environment set up.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._rank, self._world = trainer.global_rank, trainer.world_size
        # DDP on one device has a process group as well, and on one GPU shows that what is sent can
        # be sent.
        self._alone = self._world == 1 and not isinstance(trainer.strategy, DDPStrategy)

    def once(self, decide: Callable[[], T], *, patient: bool = False) -> T:
        """What ``decide()`` returns on the first rank, on all of them.

        Args:
            decide: called on the first rank alone. What it returns is pickled; tensors should be on
                the CPU.
            patient: let the others wait for as long as it takes, not only until the training's own
                process group gives up.

        Raises:
            Exception: on every rank, what ``decide`` raised on the first.
        """
        if self._alone:
            return decide()
        group: Any = distributed.new_group(timeout=_PATIENCE) if patient else None
        decided, failure = None, None
        if self._rank == 0:
            try:
                decided = decide()
            except (
                Exception
            ) as error:  # the others must hear of it, or they would wait for what never comes
                failure = error
        told: list[Any] = [decided, failure and _sendable(failure)]
        distributed.broadcast_object_list(told, src=0, group=group)
        if group is not None:
            distributed.destroy_process_group(group)  # with NCCL it holds memory of the GPU
        if (failure := failure or told[1]) is not None:
            raise failure
        return told[0]

    @torch.no_grad()
    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the first one's values, in place."""
        if self._alone:
            return
        for tensor in tensors:
            values = tensor.detach().contiguous()  # another memory format is not sent
            distributed.broadcast(values, src=0)
            tensor.copy_(values)

    def agree(self, **held: Iterable[tuple[str, Tensor]]) -> None:
        """Compare a checksum of what each rank holds.

        Args:
            held: named tensors, by what they are together ("masks").

        Raises:
            Disagreement: on every rank, naming those that differ from the first.
        """
        if self._alone:
            return
        mine = {what: _checksum(tensors) for what, tensors in held.items()}
        everyone: list[Any] = [None] * self._world
        distributed.all_gather_object(everyone, mine)
        for what in held:
            odd = [
                rank for rank, theirs in enumerate(everyone) if theirs[what] != everyone[0][what]
            ]
            if odd:
                ranks = ", ".join(map(str, odd))
                raise Disagreement(
                    f"the {what} of rank {ranks} are not those of rank 0; does every node read the same checkpoint, and does nothing"
                    f" but the optimiser write to the network on rank {ranks}?"
                )


def _checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sendable(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot be sent or would be another on
    arrival.
    """
    try:
        arriving = str(pickle.loads(pickle.dumps(error)))
    except Exception:  # a stranger's error may refuse in any way
        arriving = None
    return (
        error
        if arriving == str(error)
        else RuntimeError(f"rank 0: {type(error).__name__}: {error}")
    )
