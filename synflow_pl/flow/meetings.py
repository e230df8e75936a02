"""Meetings: products of two signals in a skeleton that shows what is connected.

A product depends on the input through each of its factors where the other one is there: it carries
flow itself, or is a constant other than zero, which a bias may make. Without values that are known
(outside :class:`synflow_pl.flow.Connectivity`), constants count as absent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from synflow_pl.flow.convolution import convolve

__all__ = ["Attention", "Average", "Gate", "Kernel", "Meeting", "Product"]

Values = Callable[[int], Tensor]
"""By number of a recorded value, what the network computes there with the masks at hand."""

# Rounding may leave such a part of the largest entry where the exact value is zero.
_CRUMB = 1e-6


@dataclass(frozen=True)
class Meeting:
    """A step in which two signals meet, each known by the number of the recorded value.

    Attributes:
        signal: number of what carries the flow.
        by: number of what acts on it.
    """

    signal: int
    by: int

    def __call__(self, *arguments: Any) -> Tensor:
        return self.connect(arguments, None)

    def connect(self, arguments: Sequence[Any], values: Values | None) -> Tensor:
        """Return a tensor that is positive where the output of the step depends on the input.

        Args:
            arguments: The arguments of the step, positive where a value depends on the input.
            values: see :data:`Values`; ``None`` if they are not known.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Gate(Meeting):
    """A product entry by entry, plus a third argument if there is one.

    Attributes:
        shuts: whether the signal is lost where the gate is zero; not where it divides.
        halves: the dimension along which both are halves of one signal, the second behind a
            sigmoid; ``None`` if they are not.
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
    """A matrix product in which one signal averages over the other; each of its rows depends on all
    that averages.

    Attributes:
        first: whether what averages is the left factor.
        shares: whether its rows sum to one, so that it makes no difference where it averages over
            equal values.
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
    """Fused attention: values, averaged; each depends on all queries and keys.

    Attributes:
        average: what averages over a tensor shaped like the keys or the values, given the mean and
            the heads in a group.
        group: heads of queries for each head of values.
        key_group: heads of queries for each head of keys.
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
class Kernel(Meeting):
    """A convolution whose kernel depends on the input too; ``geometry`` is what follows the bias
    among its arguments.
    """

    geometry: tuple[Any, ...]

    def connect(self, arguments: Sequence[Any], values: Values | None) -> Tensor:
        signal, kernel = arguments
        there = [
            flow + _constant(flow, at, values)
            for flow, at in ((signal, self.signal), (kernel, self.by))
        ]
        return convolve(signal, there[1], None, *self.geometry) + convolve(
            there[0], kernel, None, *self.geometry
        )


@dataclass(frozen=True)
class Product(Meeting):
    """A matrix product with a matrix of weights that depends on the input too."""

    def connect(self, arguments: Sequence[Any], values: Values | None) -> Tensor:
        left, right = arguments
        there = [
            flow + _constant(flow, at, values)
            for flow, at in ((left, self.signal), (right, self.by))
        ]
        return left @ there[1] + there[0] @ right


def _constant(flow: Tensor, number: int, values: Values | None) -> Tensor:
    """One where a value does not depend on the input and is not zero, in the shape and precision of
    its flow.
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
    """Where values without flow make a difference to what averages over them: where they are not
    zero or, if it shares one among them, not equal.
    """
    if values is None or not bool((flow.detach() <= 0).any()):
        return torch.zeros_like(averaged(flow.detach()))
    if not shares:
        return averaged(_constant(flow, number, values))
    value = values(number)
    value = value if value.device.type == "mps" else value.double()
    value = value / value.abs().max().clamp_min(torch.finfo(value.dtype).tiny)
    # The variance, of values that are one at most.
    return ((averaged(value.square()) - averaged(value).square()).abs() > _CRUMB**2 * 100) & (
        averaged(flow.detach()) <= 0
    )
