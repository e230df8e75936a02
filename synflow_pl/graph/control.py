"""Control flow: runs `torch.cond` and `while_loop` as plain Python.

PyTorch traces the functions that these higher-order operators are given before it runs them, which
fails on copies of parameters and under our tracer. Since the values are known, the selected
function is called directly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode

__all__ = ["Controlled"]


class Controlled(TorchFunctionMode):
    """Calls the functions of `torch.cond` and `while_loop` directly while it is active."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, HigherOrderOperator):
            if func is torch.ops.higher_order.cond:
                with self:
                    return _chosen(*args, **(kwargs or {}))
            if func is torch.ops.higher_order.while_loop:
                with self:
                    return _repeated(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _chosen(pred: Any, true_fn: Any, false_fn: Any, operands: Any = ()) -> Any:
    return true_fn(*operands) if pred else false_fn(*operands)


def _repeated(cond_fn: Any, body_fn: Any, carried_inputs: Any, additional_inputs: Any = ()) -> Any:
    carried = tuple(carried_inputs)
    while cond_fn(*carried, *additional_inputs):
        carried = tuple(body_fn(*carried, *additional_inputs))
    return carried
