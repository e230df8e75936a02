"""Run a network without randomness, and record which values it reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from synflow_pl.compaction.branches import decisive

__all__ = ["DeterministicMode", "default_dtype"]


@contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Set torch's default dtype inside the context, unless ``dtype`` is ``None``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class DeterministicMode(TorchDispatchMode):
    """Replace the results of random operations by constants and record reads of values.

    Args:
        own: Data pointers of the network's parameters and buffers.
        dtype: Precision of the comparison.

    Attributes:
        coarse: Whether a result had a lower precision than ``dtype``.
        reads: Number of times that each operation passed values of tensors other than parameters
            and buffers to Python.
    """

    supports_higher_order_operators = True

    def __init__(self, own: set[int], dtype: torch.dtype | None) -> None:
        super().__init__()
        self._own, self._dtype = own, dtype
        self.coarse, self.reads = False, Counter[str]()

    def __torch_dispatch__(
        self, target: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(target, HigherOrderOperator):
            return target(*args, **kwargs)
        for argument in decisive(
            target, args, lambda x: isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)
        ):
            if isinstance(argument, Tensor) and (
                argument.layout != torch.strided or argument.data_ptr() not in self._own
            ):
                self.reads[target._schema.name] += 1
        result = target(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in target.tags:
            result = _without_randomness(target._schema.name.split("::")[1], result, args)
        for output in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(output, Tensor) and output.is_floating_point():
                self.coarse |= self._dtype is not None and output.dtype != self._dtype
        return result


def _without_randomness(name: str, result: Any, args: tuple[Any, ...]) -> Any:
    """Return a constant in place of a random operation's result.

    The constant is half of the probability for draws of zeros and ones, and half a standard
    deviation above the mean for other draws, so that neither a probability nor added noise cancels
    out. Operations without a rule return what they drew from the seed.
    """
    if name in ("bernoulli", "bernoulli_"):
        share = args[1] if len(args) > 1 else 0.5 if name.endswith("_") else args[0]
        return (result.copy_(share) if isinstance(share, Tensor) else result.fill_(share)).div_(2)
    if name == "native_dropout":
        result[0].copy_(args[0]).div_(2)
        return result
    if name in ("rand", "rand_like", "randn", "randn_like", "uniform_", "normal_"):
        # Bounds of a uniform distribution, or mean and standard deviation of a normal one.
        first, second = (
            (0.0, 1.0) if not name.endswith("_") else (*args[1:], *(0.0, 1.0)[len(args) - 1 :])
        )
        return result.fill_(first + (second - first * (name == "uniform_")) / 2)
    return result.copy_(result.flatten().sort()[0]) if name == "randperm" else result
