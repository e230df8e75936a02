"""Maxima: what operations that select entries connect.

Which entry a maximum selects depends on the values, so for connectivity the output is connected to
every entry that can be selected: the sum replaces the maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from synflow_pl.flow.convolution import widened
from synflow_pl.graph import operators

__all__ = ["SELECTIONS"]


def _window(
    function: Callable[..., Any],
    signal: Tensor,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    *_: Any,
) -> Any:
    """Return the sum over each window of a max pooling."""
    with torch.no_grad():
        result = function(signal, kernel, stride, padding, dilation, *_)
    pooled, *indices = result if isinstance(result, (tuple, list)) else (result,)
    spatial = len(kernel)
    kernel, stride, padding, dilation = (
        widened(given, spatial) for given in (kernel, stride or kernel, padding, dilation)
    )
    pads: list[int] = []
    for axis in reversed(range(spatial)):
        reach = (
            (pooled.shape[axis - spatial] - 1) * stride[axis]
            + dilation[axis] * (kernel[axis] - 1)
            + 1
        )
        pads += [padding[axis], reach - signal.shape[axis - spatial] - padding[axis]]
    planes = functional.pad(signal.reshape(-1, 1, *signal.shape[-spatial:]), pads)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[spatial - 1]
    total = convolve(planes, planes.new_ones(1, 1, *kernel), None, stride, 0, dilation).reshape(
        pooled.shape
    )
    return (total, *indices) if indices else total


def _adaptive_window(function: Callable[..., Any], signal: Tensor, size: Sequence[int]) -> Any:
    """Return the mean over each window of an adaptive max pooling."""
    with torch.no_grad():
        _, indices = function(signal, size)
    average: Any = (
        functional.adaptive_avg_pool1d,
        functional.adaptive_avg_pool2d,
        functional.adaptive_avg_pool3d,
    )[len(size) - 1]
    return average(signal, size), indices


def _largest(function: Callable[..., Any], signal: Tensor, *arguments: Any) -> Any:
    """Return the sum in place of a maximum over one dimension, all entries or two signals."""
    result = function(signal, *arguments)
    if arguments and isinstance(arguments[0], Tensor):
        return signal + arguments[0]
    if isinstance(result, Tensor):
        return signal.sum(*arguments) if arguments else signal.sum()
    return signal.sum(*arguments), result[1]


def _several(dimension: int) -> Callable[..., Any]:
    """Return the rule of an operation that selects several entries along one dimension.

    Each selected entry becomes the sum over the dimension, since it may be any of them.

    Args:
        dimension: Position of the dimension among the arguments of the operation.
    """

    def choose(function: Callable[..., Any], signal: Tensor, *arguments: Any) -> Any:
        values, indices = function(signal, *arguments)
        dim = arguments[dimension] if len(arguments) > dimension else -1
        return signal.sum(dim, keepdim=True).expand_as(values), indices

    return choose


def _either(function: Callable[..., Any], left: Tensor, right: Tensor) -> Tensor:
    return left + right


SELECTIONS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(operators.MAX_POOLS, _window),
    **dict.fromkeys(operators.ADAPTIVE_MAX_POOLS, _adaptive_window),
    **dict.fromkeys(("max", "amax"), _largest),
    **dict.fromkeys(("maximum", "minimum"), _either),
    "topk": _several(1),
    "sort": _several(0),
    "cummax": lambda function, signal, dim: (signal.cumsum(dim), function(signal, dim)[1]),
}
