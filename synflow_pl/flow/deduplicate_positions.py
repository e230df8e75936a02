"""Uniform stretches: positions at which the skeleton's flow is the same are computed once.

The input is ones, so away from the border every position of a convolution sees the same, and puts
out the same. After k layers of 3x3 kernels only k positions at either border differ; the stretch
between them can be cut short, down to one position, and nothing but the size of the image changes.
Where a stretch would vanish, because borders have met or a stride does not divide what is left out,
and where the whole signal is asked for, the positions left out are put back as copies. What is
computed is the same number R, so its gradients are the same too. Early layers, the largest in
positions, so cost what their depth makes them cost, whatever the image's size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from synflow_pl.flow.convolution import convolve, widened
from synflow_pl.flow.linear_network import Node
from synflow_pl.graph.trace import Value

__all__ = ["deduplicate_positions"]

# Worth a copy: so many times fewer positions in what comes before.
_WORTH = 2.0
_POINTWISE: tuple[Callable[..., Any], ...] = (torch.mul, torch.div, torch.add)


class _Axis(NamedTuple):
    """Positions along one dimension of a signal; from ``start`` up to ``stop`` they are all the
    same.
    """

    size: int
    start: int
    stop: int

    @property
    def room(self) -> int:
        """How many of them can be left out."""
        return max(0, self.stop - self.start - 1)


class _Window(NamedTuple):
    """What a position of the output reads along one dimension."""

    reach: int
    stride: int
    padding: int

    def over(self, axis: _Axis) -> _Axis:
        start = -(-(axis.start + self.padding) // self.stride)
        stop = (axis.stop + self.padding - self.reach) // self.stride + 1
        return _Axis(
            (axis.size + 2 * self.padding - self.reach) // self.stride + 1, start, max(start, stop)
        )


_POINT = _Window(1, 1, 0)


def deduplicate_positions(
    steps: Sequence[Node],
    sources: Mapping[int, Tensor],
    outputs: Sequence[int],
    shape: Callable[[int], Sequence[int]],
    unused: int,
) -> tuple[list[Node], dict[int, Tensor], tuple[int, ...]]:
    """The same function of the weights on shorter signals.

    Args:
        steps: from input to output.
        sources: by number, ones: where flow comes in.
        outputs: numbers of the values whose sum is asked for.
        shape: of a value, by number.
        unused: the first number that no value has.

    Returns:
        The steps, the sources and the numbers of the outputs, which are whole.
    """
    return _Shortening(steps, sources, shape, unused).run(outputs)


class _Shortening:
    def __init__(
        self,
        steps: Sequence[Node],
        sources: Mapping[int, Tensor],
        shape: Callable[[int], Sequence[int]],
        unused: int,
    ) -> None:
        self._given = steps
        self._sources = sources
        self._shape = shape
        self._unused = unused
        self._read = {number for step in steps for number in step.operands}
        self._axes = {
            number: tuple(_Axis(size, 0, size) for size in ones.shape[2:])
            for number, ones in sources.items()
            if ones.dim() >= 3
        }
        # By the number of its output, for each step that can work on shortened signals.
        self._windows: dict[int, tuple[_Window, ...]] = {}
        for step in steps:
            self._follow(step)
        # By number, the outputs of those of them that read a signal.
        self._readers: dict[int, list[int]] = {}
        for step in steps:
            if step.outputs[0] in self._windows:
                for number in self._signals(step):
                    self._readers.setdefault(number, []).append(step.outputs[0])
        self._plan = self._planned()
        self._left_out: dict[int, tuple[int, ...]] = {}
        self._whole: dict[tuple[int, tuple[int, ...]], int] = {}
        self._steps: list[Node] = []

    def run(self, outputs: Sequence[int]) -> tuple[list[Node], dict[int, Tensor], tuple[int, ...]]:
        sources = dict(self._sources)
        for number in sources.keys() & self._axes.keys():
            left_out = self._left_out[number] = self._plan[number]
            for dim, count in enumerate(left_out, 2):
                sources[number] = sources[number].narrow(dim, 0, sources[number].shape[dim] - count)
        for step in self._given:
            self._add(step)
        return self._steps, sources, tuple(self._at(number) for number in outputs)

    def _follow(self, step: Node) -> None:
        """Where the signal that a step makes is the same, if it can work on shortened ones."""
        signals = self._signals(step)
        windows = self._windows_of(step, signals)
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
            return  # one of two is spread out over the other
        self._windows[step.outputs[0]] = windows
        self._axes[step.outputs[0]] = tuple(
            _Axis(axes[0].size, max(axis.start for axis in axes), min(axis.stop for axis in axes))
            for axes in zip(*over, strict=True)
        )

    def _signals(self, step: Node) -> list[int]:
        return [number for number in step.operands if number in self._axes]

    def _windows_of(self, step: Node, signals: list[int]) -> tuple[_Window, ...] | None:
        if not signals or step.kwargs or len({len(self._axes[number]) for number in signals}) > 1:
            return None
        spatial = len(self._axes[signals[0]])
        if step.function in _POINTWISE:
            others = [number for number in step.operands if number not in signals]
            spread = all(size == 1 for number in others for size in self._shape(number)[-spatial:])
            return (_POINT,) * spatial if spread else None
        signal, *rest = step.args
        if len(signals) > 1 or not isinstance(signal, Value) or signal.number not in signals:
            return None
        if step.function is convolve:
            weight, _, stride, padding, dilation, transposed, *_ = rest
            kernel = self._shape(weight.number)[2:]
            if transposed:
                return None
        elif step.name.startswith(("max_pool", "avg_pool")):
            kernel, stride, padding, dilation, over = (
                _largest if step.name.startswith("max_pool") else _average
            )(*rest)
            if over or self._read.intersection(step.outputs[1:]):
                return None  # windows that hang over the edge, or somebody who reads where the largest were
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
        """By number, how many positions of each signal are to be left out: what those who read it
        can do with, or all that can be where that leaves so much less that copies are worth it.
        """
        plan: dict[int, tuple[int, ...]] = {}
        for number, axes in reversed(self._axes.items()):
            most = tuple(axis.room for axis in axes)
            if number not in self._readers:
                plan[number] = most if number not in self._sources else (0,) * len(axes)
                continue
            bound = most
            for reader in self._readers[number]:
                bound = tuple(map(min, bound, self._can_do_with(reader, most, plan[reader])))
            size = prod(axis.size - count for axis, count in zip(axes, bound, strict=True))
            plan[number] = (
                bound if size <= _WORTH * prod(axis.size - axis.room for axis in axes) else most
            )
        return plan

    def _can_do_with(
        self, reader: int, most: tuple[int, ...], planned: tuple[int, ...]
    ) -> tuple[int, ...]:
        """How many positions can be left out of what a step reads, by what is planned for its
        output.
        """
        each = zip(self._windows[reader], self._axes[reader], most, planned, strict=True)
        return tuple(
            min(left_out, count)
            if window.stride == 1
            else window.stride * min(axis.room, count // window.stride)
            for window, axis, count, left_out in each
        )

    def _add(self, step: Node) -> None:
        signals = self._signals(step)
        windows = self._windows.get(step.outputs[0])
        wanted: tuple[int, ...] | None = None
        if windows is not None:
            out = step.outputs[0]
            left_out = tuple(axis.room for axis in self._axes[out])
            for number in signals:
                # Copies are put back once before several strided steps, not after each; after a
                # single one there are fewer.
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

        def leaf(item: Any) -> Any:
            return at.get(item.number, item) if isinstance(item, Value) else item

        args, kwargs = tree_map(
            leaf, (step.args, step.kwargs), is_leaf=lambda item: isinstance(item, Value)
        )
        self._steps.append(replace(step, args=args, kwargs=kwargs))

    def _at(self, number: int, wanted: tuple[int, ...] | None = None) -> int:
        """The number of a value with only so many positions left out, none by default."""
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
            self._steps.append(
                Node("index_select", partial(_take, places), (Value(number),), {}, (new,), False)
            )
        return self._whole[number, wanted]


def _largest(
    kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, over: bool = False
) -> tuple[Any, ...]:
    """The arguments of ``aten.max_pool*`` behind the signal."""
    return kernel, stride or kernel, padding, dilation, over


def _average(
    kernel: Any, stride: Any = (), padding: Any = 0, over: bool = False, *_: Any
) -> tuple[Any, ...]:
    """The same of ``aten.avg_pool*``, which has no dilation."""
    return kernel, stride or kernel, padding, 1, over


def _with_copies(axis: _Axis, before: int, after: int) -> list[int]:
    """Which stored position each position is, when ``after`` are to be left out and ``before`` are
    now.
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
