"""Written memory: restores the memory that a forward pass writes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from synflow_pl.graph.aliasing import written_tensors

__all__ = ["Writes", "memory_of", "put_back"]


class Writes(TorchDispatchMode):
    """Keeps the contents of memory before operations write to it while the mode is active.

    Memory that was allocated by one of the operations themselves is not kept.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[int, tuple[Tensor, torch.UntypedStorage]] = {}
        self._allocated: set[int] = set()

    def restore(self) -> None:
        """Restore all memory that was written to, and start anew."""
        put_back(self._before)
        self._before.clear()
        self._allocated.clear()

    def __torch_dispatch__(
        self, target: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(target, HigherOrderOperator):
            return target(*args, **kwargs)  # the functions of a higher-order operator may not write
        for leaf in written_tensors(target, args, kwargs):
            if (
                leaf.layout is torch.strided
                and (place := memory_of(leaf)) not in self._before
                and place not in self._allocated
            ):
                self._before[place] = leaf, leaf.untyped_storage().clone()
        result = target(*args, **kwargs)
        # A result is new memory or that of an argument.
        read = {memory_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        self._allocated |= {
            memory_of(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)
        } - read
        return result


def put_back(held: Mapping[int, tuple[Tensor, torch.UntypedStorage]]) -> None:
    """Restore the contents of memory."""
    for tensor, before in held.values():
        memory = tensor.untyped_storage()
        if memory.nbytes() != before.nbytes():
            memory.resize_(before.nbytes())
        memory.copy_(before)


def memory_of(tensor: Tensor) -> int:
    """Return a number that two tensors share exactly if they share memory."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else -id(tensor)
