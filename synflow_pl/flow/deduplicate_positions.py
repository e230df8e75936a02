"""Deduplication of positions: equal positions of a signal are computed once.

The input is ones, so away from the border all positions of a convolution's output are equal. After
k layers of 3x3 kernels only k positions at either border differ; all but one of the equal ones
between them can be left out. They are put back as copies where nothing can be left out any more,
because the borders have met or a stride does not divide the number left out, and where the whole
signal is needed. The result R is the same number, so its gradients are the same too, and the cost
for early layers, which have the most positions, does not depend on the size of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synflow_pl.flow.convolution import convolve, widened
from synflow_pl.flow.node import Node
from synflow_pl.graph.operation import Value, map_values

__all__ = ["deduplicate_positions"]

# Copies are put back if this makes the preceding signal so many times smaller.
_WORTH = 2.0
_POINTWISE: tuple[Callable[..., Any], ...] = (torch.mul, torch.div, torch.add)


class _Axis(NamedTuple):
    """Positions along one dimension of a signal; the ones in [start, stop) are equal."""

    size: int
    start: int
    stop: int

    @property
    def room(self) -> int:
        """Return how many equal positions can be left out."""
        return max(0, self.stop - self.start - 1)


class _Window(NamedTuple):
    """The input positions that each output position reads along one dimension."""

    reach: int
    stride: int
    padding: int

    def over(self, axis: _Axis) -> _Axis:
        size = (axis.size + 2 * self.padding - self.reach) // self.stride + 1
        # The first window without the border may lie beyond the last position.
        start = min(-(-(axis.start + self.padding) // self.stride), size)
        stop = (axis.stop + self.padding - self.reach) // self.stride + 1
        return _Axis(size, start, max(start, stop))


_POINT = _Window(1, 1, 0)


def deduplicate_positions(
    nodes: Sequence[Node],
    sources: Mapping[int, Tensor],
    outputs: Sequence[int],
    shape: Callable[[int], Sequence[int]],
    unused: int,
) -> tuple[list[Node], dict[int, Tensor], tuple[int, ...]]:
    """Return nodes that compute the same function of the weights on shorter signals.

    Args:
        nodes: Nodes of the linear network in order of execution.
        sources: Tensors of ones at which flow starts, by number.
        outputs: Numbers of the outputs.
        shape: Function from the number of a value to its shape.
        unused: Smallest number that no value has.

    Returns:
        The nodes, the sources and the numbers of the outputs, which have their full size.
    """
    return _Deduplication(nodes, sources, shape, unused).run(outputs)


class _Deduplication:
    def __init__(
        self,
        nodes: Sequence[Node],
        sources: Mapping[int, Tensor],
        shape: Callable[[int], Sequence[int]],
        unused: int,
    ) -> None:
        self._given = nodes
        self._sources = sources
        self._shape = shape
        self._unused = unused
        self._read = {number for node in nodes for number in node.operands}
        self._axes = {
            number: tuple(_Axis(size, 0, size) for size in ones.shape[2:])
            for number, ones in sources.items()
            if ones.dim() >= 3
        }
        # The windows of each node that can work on shorter signals, by the number of its output.
        self._windows: dict[int, tuple[_Window, ...]] = {}
        for node in nodes:
            self._follow(node)
        # The outputs of such nodes that read each signal, by number.
        self._readers: dict[int, list[int]] = {}
        for node in nodes:
            if node.outputs[0] in self._windows:
                for number in self._signals(node):
                    self._readers.setdefault(number, []).append(node.outputs[0])
        self._plan = self._planned()
        self._left_out: dict[int, tuple[int, ...]] = {}
        self._whole: dict[tuple[int, tuple[int, ...]], int] = {}
        self._nodes: list[Node] = []

    def run(self, outputs: Sequence[int]) -> tuple[list[Node], dict[int, Tensor], tuple[int, ...]]:
        sources = dict(self._sources)
        for number in sources.keys() & self._axes.keys():
            left_out = self._left_out[number] = self._plan[number]
            for dim, count in enumerate(left_out, 2):
                sources[number] = sources[number].narrow(dim, 0, sources[number].shape[dim] - count)
        for node in self._given:
            self._add(node)
        return self._nodes, sources, tuple(self._at(number) for number in outputs)

    def _follow(self, node: Node) -> None:
        """Find the equal positions of a node's output if the node can work on shorter signals."""
        signals = self._signals(node)
        windows = self._windows_of(node, signals)
        if windows is None:
            return
        over = [
            [window.over(axis) for window, axis in zip(windows, self._axes[number], strict=True)]
            for number in signals
        ]
        if any(
            axis.size != same.size
            for axes in over
            for axis, same in zip(axes, over[0], strict=True)
        ):
            return  # one operand is broadcast over the other
        self._windows[node.outputs[0]] = windows
        self._axes[node.outputs[0]] = tuple(
            _Axis(axes[0].size, max(axis.start for axis in axes), min(axis.stop for axis in axes))
            for axes in zip(*over, strict=True)
        )

    def _signals(self, node: Node) -> list[int]:
        return [number for number in node.operands if number in self._axes]

    def _windows_of(self, node: Node, signals: list[int]) -> tuple[_Window, ...] | None:
        if not signals or node.kwargs or len({len(self._axes[number]) for number in signals}) > 1:
            return None
        spatial = len(self._axes[signals[0]])
        if node.function in _POINTWISE:
            others = [number for number in node.operands if number not in signals]
            spread = all(size == 1 for number in others for size in self._shape(number)[-spatial:])
            return (_POINT,) * spatial if spread else None
        signal, *rest = node.args
        if len(signals) > 1 or not isinstance(signal, Value) or signal.number not in signals:
            return None
        if node.function is convolve:
            weight, _, stride, padding, dilation, transposed, *_ = rest
            kernel = self._shape(weight.number)[2:]
            if transposed:
                return None
        elif node.name.startswith(("max_pool", "avg_pool")):
            kernel, stride, padding, dilation, over = (
                _largest if node.name.startswith("max_pool") else _average
            )(*rest)
            if over or self._read.intersection(node.outputs[1:]):
                # Windows cross the border, or another node reads the indices of the maxima.
                return None
        else:
            return None
        if len(kernel) != spatial:
            return None
        each = zip(
            kernel, *(widened(given, spatial) for given in (stride, padding, dilation)), strict=True
        )
        return tuple(
            _Window(apart * (size - 1) + 1, step_, pad) for size, step_, pad, apart in each
        )

    def _planned(self) -> dict[int, tuple[int, ...]]:
        """Return how many positions of each signal to leave out, by number.

        That is as many as all nodes that read the signal allow, or as many as possible where the
        signal gets so much smaller that copies are worth it.
        """
        plan: dict[int, tuple[int, ...]] = {}
        for number, axes in reversed(self._axes.items()):
            most = tuple(axis.room for axis in axes)
            if number not in self._readers:
                plan[number] = most if number not in self._sources else (0,) * len(axes)
                continue
            bound = most
            for reader in self._readers[number]:
                bound = tuple(map(min, bound, self._allowed_by(reader, most, plan[reader])))
            size = prod(axis.size - count for axis, count in zip(axes, bound, strict=True))
            plan[number] = (
                bound if size <= _WORTH * prod(axis.size - axis.room for axis in axes) else most
            )
        return plan

    def _allowed_by(
        self, reader: int, most: tuple[int, ...], planned: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Return how many positions a node's input can leave out, given those of its output."""
        each = zip(self._windows[reader], self._axes[reader], most, planned, strict=True)
        return tuple(
            min(left_out, count)
            if window.stride == 1
            else window.stride * min(axis.room, count // window.stride)
            for window, axis, count, left_out in each
        )

    def _add(self, node: Node) -> None:
        signals = self._signals(node)
        windows = self._windows.get(node.outputs[0])
        wanted: tuple[int, ...] | None = None
        if windows is not None:
            out = node.outputs[0]
            left_out = tuple(axis.room for axis in self._axes[out])
            for number in signals:
                # Several strided nodes share the copies that are put back before them. A single one
                # has its copies put back after it, where there are fewer.
                alone = len(self._readers[number]) == 1
                left_out = tuple(
                    min(
                        count,
                        before // window.stride,
                        count if alone and window.stride > 1 else planned,
                    )
                    for count, before, window, planned in zip(
                        left_out, self._left_out[number], windows, self._plan[out], strict=True
                    )
                )
            self._left_out[out] = left_out
            wanted = tuple(
                count * window.stride for count, window in zip(left_out, windows, strict=True)
            )
        at = {number: Value(self._at(number, wanted)) for number in signals}
        args, kwargs = map_values(
            lambda value: at.get(value.number, value), (node.args, node.kwargs)
        )
        self._nodes.append(replace(node, args=args, kwargs=kwargs))

    def _at(self, number: int, wanted: tuple[int, ...] | None = None) -> int:
        """Return the number of a value with ``wanted`` positions left out, none by default."""
        left_out = self._left_out.get(number)
        if left_out is None:
            return number
        wanted = wanted or (0,) * len(left_out)
        if wanted == left_out:
            return number
        if (number, wanted) not in self._whole:
            takes = [
                _with_copies(axis, before, after)
                for axis, before, after in zip(self._axes[number], left_out, wanted, strict=True)
            ]
            device = next(iter(self._sources.values())).device
            places = [torch.tensor(take, device=device) for take in takes]
            new = self._whole[number, wanted] = self._unused
            self._unused += 1
            self._nodes.append(
                Node("index_select", partial(_take, places), (Value(number),), {}, (new,), False)
            )
        return self._whole[number, wanted]


def _largest(
    kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, over: bool = False
) -> tuple[Any, ...]:
    """Return kernel, stride, padding, dilation and ceil mode of ``aten.max_pool*``."""
    return kernel, stride or kernel, padding, dilation, over


def _average(
    kernel: Any, stride: Any = (), padding: Any = 0, over: bool = False, *_: Any
) -> tuple[Any, ...]:
    """Return kernel, stride, padding, dilation and ceil mode of ``aten.avg_pool*``."""
    return kernel, stride or kernel, padding, 1, over


def _with_copies(axis: _Axis, before: int, after: int) -> list[int]:
    """Return the stored index of each position.

    Args:
        axis: Positions of the whole signal.
        before: Number of positions that the stored signal leaves out.
        after: Number of positions that the new signal leaves out.
    """
    return [
        *range(axis.start),
        *[axis.start] * (before - after),
        *range(axis.start, axis.size - before),
    ]


def _take(places: list[Tensor], signal: Tensor) -> Tensor:
    for dim, at in enumerate(places, 2):
        signal = signal.index_select(dim, at)
    return signal
