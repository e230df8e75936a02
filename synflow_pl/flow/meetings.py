"""Meetings: products of two signals in a linear network with open gates, for connectivity.

A product depends on the input through one factor wherever the other factor is present: where that
factor carries flow itself or is a nonzero constant, which may come from a bias. Unless the values
in the network are known (in :class:`synflow_pl.flow.Connectivity`), constants count as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Attention", "Average", "Gate", "Meeting", "Product"]

Values = Callable[[int], Tensor]
"""Function from the number of a traced value to its tensor under the current masks."""

# An entry below this fraction of the largest one may be a rounding error of zero.
_CRUMB = 1e-6


@dataclass(frozen=True)
class Meeting:
    """A node in which two signals meet, each identified by the number of its traced value.

    Attributes:
        signal: Number of the signal that carries the flow.
        by: Number of the signal that acts on it.
    """

    signal: int
    by: int

    def __call__(self, *arguments: Any) -> Tensor:
        return self.connect(arguments, None)

    def connect(self, arguments: Sequence[Any], values: Values | None) -> Tensor:
        """Return a tensor that is positive where the output of the node depends on the input.

        Args:
            arguments: Arguments of the node, positive where a value depends on the input.
            values: See :data:`Values`; ``None`` if the values are not known.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Gate(Meeting):
    """An elementwise product, plus a third argument if there is one.

    Attributes:
        shuts: Whether the output is zero where the gate is zero, which is not so for a divisor.
        halves: Dimension along which both factors are halves of one signal, the second one behind a
            sigmoid; ``None`` if they are separate signals.
    """

    shuts: bool = True
    halves: int | None = None

    def connect(self, arguments: Sequence[Any], values: Values | None) -> Tensor:
        signal, *rest = arguments
        if self.halves is None:
            by, *added = rest
            constant = _constant(signal, self.signal, values)
        else:
            constant = _constant(signal, self.signal, values).chunk(2, self.halves)[0]
            (signal, by), added = signal.chunk(2, self.halves), []
        open_ = torch.ones_like(by)
        if self.shuts and values is not None and self.halves is None:
            open_ = ((by.detach() > 0) | (_constant(by, self.by, values) > 0)).to(by.dtype)
        return sum(added, signal * open_ + by * (signal + constant))


@dataclass(frozen=True)
class Average(Meeting):
    """A matrix product in which one signal averages over the other.

    Each row of the averaging signal depends on all of its entries.

    Attributes:
        first: Whether the averaging signal is the left factor.
        shares: Whether its rows sum to one, so that the average of equal values does not depend on
            it.
    """

    first: bool = True
    shares: bool = False

    def connect(self, arguments: Sequence[Any], values: Values | None) -> Tensor:
        mean, signal, by = arguments

        def averaged(value: Tensor) -> Tensor:
            return mean.to(value.dtype) @ value if self.first else value @ mean.to(value.dtype)

        attended = averaged(signal)
        by = by.sum(-1 if self.first else -2, keepdim=True)
        return attended + by * (
            attended + _varying(signal, self.signal, values, averaged, self.shares).to(attended)
        )


@dataclass(frozen=True)
class Attention(Meeting):
    """Fused attention: a mean of the values in which each output depends on all queries and keys.

    Attributes:
        average: Function that averages a tensor in the shape of the keys or values, given the
            averaging matrix, the tensor and the number of query heads per head.
        group: Number of query heads for each head of values.
        key_group: Number of query heads for each head of keys.
    """

    average: Callable[[Tensor, Tensor, int], Tensor]
    group: int = 1
    key_group: int = 1

    def connect(self, arguments: Sequence[Any], values: Values | None) -> Tensor:
        mean, value, query, key = arguments

        def averaged(signal: Tensor) -> Tensor:
            return self.average(mean.to(signal.dtype), signal, self.group)

        attended = averaged(value)
        by = torch.zeros_like(attended[..., :1])
        if query is not None:
            by = by + query.sum(-1, keepdim=True)
        if key is not None:
            by = by + self.average(mean, key, self.key_group).sum(-1, keepdim=True)
        return attended + by * (
            attended + _varying(value, self.signal, values, averaged, True).to(attended)
        )


@dataclass(frozen=True)
class Product(Meeting):
    """A product with a matrix or kernel that depends on the input too.

    Attributes:
        multiply: Function of the two factors: a matrix product or a convolution.
    """

    multiply: Callable[[Tensor, Tensor], Tensor] = torch.matmul

    def connect(self, arguments: Sequence[Any], values: Values | None) -> Tensor:
        left, right = arguments
        there = [
            flow + _constant(flow, at, values)
            for flow, at in ((left, self.signal), (right, self.by))
        ]
        return self.multiply(left, there[1]) + self.multiply(there[0], right)


def _constant(flow: Tensor, number: int, values: Values | None) -> Tensor:
    """Return ones where a value is nonzero but does not depend on the input.

    The result has the shape and precision of the value's flow.
    """
    absent = flow.detach() <= 0
    if values is None or not bool(absent.any()):
        return torch.zeros_like(flow)
    value = values(number).abs()
    return (absent & (value > _CRUMB * value.max())).to(flow.dtype)


def _varying(
    flow: Tensor,
    number: int,
    values: Values | None,
    averaged: Callable[[Tensor], Tensor],
    shares: bool,
) -> Tensor:
    """Return where a signal that averages makes a difference, though the values carry no flow.

    It does where the values are not zero or, if its rows sum to one, where they are not equal.
    """
    if values is None or not bool((flow.detach() <= 0).any()):
        return torch.zeros_like(averaged(flow.detach()))
    if not shares:
        return averaged(_constant(flow, number, values))
    value = values(number)
    value = value if value.device.type == "mps" else value.double()
    value = value / value.abs().max().clamp_min(torch.finfo(value.dtype).tiny)
    # The variance of values that are at most one.
    return ((averaged(value.square()) - averaged(value).square()).abs() > _CRUMB**2 * 100) & (
        averaged(flow.detach()) <= 0
    )
