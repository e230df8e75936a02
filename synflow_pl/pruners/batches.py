"""Batches of any structure: their tensors, their size, and how they are moved to a device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

__all__ = ["batch_size", "cast", "move_batch", "tensors_in"]


def batch_size(batch: Any) -> int:
    """Return the number of examples of a batch: the first dimension of its first tensor.

    A batch of graphs that counts them in ``num_graphs`` has that many examples, and a batch without
    a tensor that has a dimension counts as one.

    Args:
        batch: Tensor, or nested mappings, sequences and dataclasses of tensors.

    Example:
        >>> batch_size({"weight": torch.tensor(1.0), "inputs": (torch.ones(4, 8), torch.ones(3))})
        4
    """
    graphs = getattr(batch, "num_graphs", None)
    if isinstance(graphs, int):
        return graphs
    return next((len(tensor) for tensor in tensors_in(batch) if tensor.dim()), 1)


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch of any structure, in order.

    Args:
        batch: Tensor, or nested mappings, sequences and dataclasses of tensors.
    """
    if isinstance(batch, Tensor):
        yield batch
        return
    parts: Iterable[Any] = ()
    if isinstance(batch, Mapping):
        parts = batch.values()
    elif isinstance(batch, (list, tuple)):
        parts = batch
    elif is_dataclass(batch):
        parts = vars(batch).values()
    for part in parts:
        yield from tensors_in(part)


def cast(tensor: Tensor, like: Tensor) -> Tensor:
    """Move a tensor to the device of ``like``, and a floating-point tensor to its dtype."""
    return tensor.detach().to(
        like.device, like.dtype if tensor.is_floating_point() else tensor.dtype
    )


@runtime_checkable
class _Movable(Protocol):
    """Anything with a method ``to()``: tensors, packed sequences, batches of graphs, encodings."""

    def to(self, device: torch.device) -> Any: ...


def move_batch(batch: Any, like: Tensor) -> Any:
    """Move a batch to the device of ``like``, and floating-point tensors to its dtype as well.

    Args:
        batch: Nested mappings, sequences and dataclasses of tensors and of objects with a method
            ``to()``.
        like: Tensor on the device and of the dtype.
    """
    return apply_to_collection(
        batch,
        _Movable,
        lambda part: cast(part, like) if isinstance(part, Tensor) else part.to(like.device),
    )
