"""Loader of batches in an order that seed and epoch determine, for any number of ranks.

It can be resumed within an epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from torch import Tensor

from synflow_pl.data.counter_rng import permutation, random_numbers

__all__ = ["Batch", "Key", "Loader", "Source", "batch_sizes"]

Batch = tuple[Tensor, Tensor]
"""Normalised images, float (N, C, H, W), and labels, int64 (N,)."""
Key = tuple[Tensor, Tensor | None]
"""Indices of images, int64 (N,), and a random number for the augmentation of each, int64 (N,), or
``None`` for no augmentation.
"""


class Source(Protocol):
    """Protocol of the sources that images are read from."""

    labels: Tensor
    """Labels of all images, int64 (N,)."""

    def read(self, keys: Iterable[Key]) -> Iterator[Batch]:
        """Yield one batch for each key, in the order of the keys.

        Args:
            keys: Images of each batch.
        """


def batch_sizes(count: int, batch_size: int, ranks: int) -> list[int]:
    """Return the number of images in each batch of an epoch, over all ranks together.

    The last batch need not be full. It is merged with the batch before only if it has fewer images
    than there are ranks.

    Args:
        count: Number of images.
        batch_size: Number of images in a full batch.
        ranks: Number of ranks, each of which gets at least one image of every batch.

    Raises:
        ValueError: If there are fewer images than ranks.
    """
    if count < ranks:
        raise ValueError(
            f"{count} images cannot be shared by {ranks} devices; use at most {count} devices"
        )
    full, rest = divmod(count, batch_size)
    batch_counts = [batch_size] * full
    if 0 < rest < ranks:
        batch_counts[-1] += rest
    elif rest:
        batch_counts.append(rest)
    return batch_counts


class Loader:
    """Iterable over the batches of a source, one epoch per iteration.

    The ranks of a distributed run divide each batch among themselves: their shares are disjoint,
    together they are the whole epoch, and they differ by at most one image. So the batches of a run
    do not depend on the number of devices.

    This is not a DataLoader, since Lightning would replace the sampler of a DataLoader under DDP.
    Lightning sets the epoch through ``sampler.set_epoch``, and saves and restores the state.
    Without Lightning, a new epoch begins when the iteration over one ends.

    Args:
        source: Source of the images.
        images: Indices of the images to load, int64.
        batch_size: Number of images in a batch over all ranks together, at least 1.
        shuffle: Whether the order is random and different in each epoch; else it is that of
            ``images``.
        augment: Whether the source gets a random number for each image.
        seed: Seed of the order and of the random numbers.
        rank: Index of this process, in [0, ``ranks``).
        ranks: Number of processes that divide each batch.
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
        """Number of batches of this epoch that were yielded."""
        self._sizes = batch_sizes(len(images), batch_size, ranks)
        self._restored: dict[str, int] | None = None

    @property
    def sampler(self) -> Loader:
        """The loader itself: Lightning calls ``set_epoch`` of a loader's sampler."""
        return self

    batch_sampler = None  # Lightning reads this attribute before ``sampler``

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch; nothing changes if ``epoch`` is the current one.

        Args:
            epoch: Epoch, counted from 0.
        """
        if epoch != self.epoch:
            self.epoch, self.batch, self._restored = epoch, 0, None

    def __len__(self) -> int:
        return len(self._sizes)

    def epoch_keys(self) -> list[Key]:
        """Return the keys of the batches that this rank reads in the current epoch."""
        images = (
            self.images[permutation(self.seed, self.epoch, len(self.images))]
            if self.shuffle
            else self.images
        )
        numbers = random_numbers(self.seed, self.epoch, images) if self.augment else None
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
        # This is a generator: nothing below runs before the first batch is requested. By then
        # Lightning, which creates iterators early, has set the epoch and restored the state.
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
        """Return the position within the epoch, and the settings that its order depends on.

        The state is the same on every rank.
        """
        return {"epoch": self.epoch, "batch": self.batch, **self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state when the next batch is requested.

        Args:
            state: Result of :meth:`state_dict`.
        """
        self.epoch, self.batch, self._restored = state["epoch"], state["batch"], dict(state)

    def _resume(self) -> int:
        state, self._restored = self._restored, None
        assert state is not None
        if (
            0 < self.batch < len(self)
            and (was := {key: state[key] for key in self._order()}) != self._order()
        ):
            orders = [
                ", ".join(f"{key} {value}" for key, value in order.items())
                for order in (was, self._order())
            ]
            raise ValueError(
                f"the checkpoint stopped after batch {self.batch} of an epoch with {orders[0]}, and"
                f" this run has {orders[1]}; resume with"
                " the same, or from a checkpoint at the end of an epoch"
            )
        return self.batch
