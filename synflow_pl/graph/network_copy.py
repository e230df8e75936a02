"""Copies of networks of any kind."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["duplicate"]


def duplicate(network: nn.Module) -> nn.Module:
    """Return a deep copy of a network, even if its attributes include tensors that are not leaves.

    PyTorch only copies leaf tensors, and ``torch.nn.utils.prune`` and the older ``spectral_norm``
    store the weight that they compute as an attribute of its layer.
    """
    with _Detached():
        return copy.deepcopy(network)


class _Detached(TorchFunctionMode):
    """Let deep copies of tensors that are not leaves be detached copies of their values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))
