"""Loader: batches in an order that seed and epoch determine, shared by the ranks, and resumable in
the middle of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from torch import Tensor

from synflow_pl.data.counter_rng import draws, permutation

__all__ = ["Batch", "Key", "Loader", "Source", "sizes"]

Batch = tuple[Tensor, Tensor]
"""Normalised images, float (N, C, H, W), and labels, int64 (N,)."""
Key = tuple[Tensor, Tensor | None]
"""Indices of images, int64 (N,), and the number drawn for each, int64 (N,), or ``None`` for images
as they are.
"""


class Source(Protocol):
    """What images are read from."""

    labels: Tensor
    """int64 (N,), of all images."""

    def read(self, keys: Iterable[Key]) -> Iterator[Batch]:
        """One batch for each key, in the order of the keys."""


def sizes(count: int, batch_size: int, ranks: int) -> list[int]:
    """How many images each step of an epoch trains on, over all ranks together.

    The last batch need not be full. Only where it would be too small to give every rank an image
    does it join the one before.

    Raises:
        ValueError: if there are fewer images than ranks.
    """
    if count < ranks:
        raise ValueError(
            f"{count} images cannot be shared by {ranks} devices; use at most {count} devices"
        )
    full, rest = divmod(count, batch_size)
    found = [batch_size] * full
    if 0 < rest < ranks:
        found[-1] += rest
    elif rest:
        found.append(rest)
    return found


class Loader:
    """Iterates over batches of a source, once over all its images in an epoch.

    The ranks of a distributed run divide each batch among themselves: their shares are disjoint,
    together they are the whole epoch, and they differ by one image at most. So the batches of a run
    do not depend on the number of its devices.

    Not a DataLoader: Lightning would replace that one's sampler under DDP. It tells this one the
    epoch (``sampler.set_epoch``), and saves and restores its state. Without Lightning a new epoch
    begins when one is through.

    Args:
        source: of the images.
        images: indices of those that are loaded, int64.
        batch_size: images in a batch over all ranks together, at least 1.
        shuffle: in another order in each epoch; else in the order of ``images``.
        augment: hand a number drawn for each image to the source.
        seed: of the order and of the numbers.
        rank: of this process among ``ranks``.
        ranks: processes that divide each batch.
    """

    def __init__(
        self,
        source: Source,
        images: Tensor,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool = False,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.source = source
        self.images = images
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = augment
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.epoch = 0
        self.batch = 0
        """Batches of this epoch that were handed out."""
        self._sizes = sizes(len(images), batch_size, ranks)
        self._restored: dict[str, int] | None = None

    @property
    def sampler(self) -> Loader:
        """Itself: Lightning tells an epoch to a loader's sampler."""
        return self

    batch_sampler = None  # Lightning looks here first

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch; nothing changes if it is this one."""
        if epoch != self.epoch:
            self.epoch, self.batch, self._restored = epoch, 0, None

    def __len__(self) -> int:
        return len(self._sizes)

    def epoch_keys(self) -> list[Key]:
        """What this rank reads in this epoch."""
        images = (
            self.images[permutation(self.seed, self.epoch, len(self.images))]
            if self.shuffle
            else self.images
        )
        numbers = draws(self.seed, self.epoch, images) if self.augment else None
        shares = [slice(self.rank, None, self.ranks)] * len(self)
        indices = [
            batch[share] for batch, share in zip(images.split(self._sizes), shares, strict=True)
        ]
        if numbers is None:
            return [(batch, None) for batch in indices]
        return list(
            zip(
                indices,
                [
                    batch[share]
                    for batch, share in zip(numbers.split(self._sizes), shares, strict=True)
                ],
                strict=True,
            )
        )

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing below runs before the first batch is asked for, and by then
        # Lightning, which makes its iterators early, has told the epoch and restored the state.
        begin = self._resume() if self._restored is not None else 0
        epoch = self.epoch
        for number, batch in enumerate(self.source.read(self.epoch_keys()[begin:]), begin + 1):
            self.batch = number
            yield batch
        if self.epoch == epoch:
            self.set_epoch(epoch + 1)

    # -- state

    def _order(self) -> dict[str, int]:
        return {"images": len(self.images), "batch_size": self.batch_size, "seed": self.seed}

    def state_dict(self) -> dict[str, int]:
        """Where in which epoch this is, and what the order of the epoch depends on; the same on
        every rank.
        """
        return {"epoch": self.epoch, "batch": self.batch, **self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken, at the next batch that is asked for."""
        self.epoch, self.batch, self._restored = state["epoch"], state["batch"], dict(state)

    def _resume(self) -> int:
        state, self._restored = self._restored, None
        assert state is not None
        if (
            0 < self.batch < len(self)
            and (was := {key: state[key] for key in self._order()}) != self._order()
        ):
            told = [
                ", ".join(f"{key} {value}" for key, value in order.items())
                for order in (was, self._order())
            ]
            raise ValueError(
                f"the checkpoint stopped after batch {self.batch} of an epoch with {told[0]}, and"
                f" this run has {told[1]}; resume with"
                " the same, or from a checkpoint at the end of an epoch"
            )
        return self.batch
