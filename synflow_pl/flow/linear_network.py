"""Skeleton: the linear network that flow passes through."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from synflow_pl.flow.convolution import convolve, multiply
from synflow_pl.flow.meetings import Meeting
from synflow_pl.flow.rescaling import LONGEST_STRETCH, cuts, power_of_two_scale
from synflow_pl.graph.trace import Value

__all__ = ["Block", "LinearNetwork", "Node", "magnitude"]


@dataclass(frozen=True)
class Node:
    """``outputs = function(*args, **kwargs)`` with every :class:`Value` replaced by what it stands
    for.

    ``contraction`` marks the steps in which weights act on the signal. ``weight`` names the
    parameter that does, where it is a plain (units, inputs, kernel...) one that nothing else reads:
    such a step can work on the living block of its weight alone.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    contraction: bool
    weight: str | None = None

    @property
    def operands(self) -> list[int]:
        """Numbers of the values that this step reads."""
        return [
            leaf.number for leaf in _leaves((self.args, self.kwargs)) if isinstance(leaf, Value)
        ]


@dataclass(frozen=True)
class Fallback:
    """What an operation that the skeleton has no rule for counts as: the identity where shapes
    agree, else plain averaging.

    Attributes:
        operation: its name.
        shape: of its output.
        truth: what it really makes of a signal, all else as it was recorded.
    """

    operation: str
    shape: torch.Size
    truth: Callable[[Tensor], Tensor]

    def __call__(self, signal: Tensor) -> Tensor:
        return signal if signal.shape == self.shape else signal.mean().expand(self.shape)

    def off(self, signal: Tensor) -> float | None:
        """How far the stand-in is from the operation on this flow, in [0, inf): the sum of
        differences over the sum of the true values.

        ``None`` where that has no meaning: the operation cannot be computed on this flow (it needs
        complex numbers, or another shape than a stand-in before it gave), is zero throughout, or is
        not finite.
        """
        try:
            true = self.truth(signal.detach())
            off = float((true - self(signal)).abs().sum() / true.abs().sum())
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
        return off if math.isfinite(off) else None


class Block(NamedTuple):
    """The part of a weight in which anything lives: whatever reads or feeds only removed weights
    carries no flow.
    """

    units: Tensor
    """(rows,) int64, ascending: units (first dimension) with a living weight."""
    inputs: Tensor
    """(columns,) int64, ascending: inputs (second dimension) that a living weight reads."""


def magnitude(weight: Tensor) -> Tensor:
    """|weight|, or ones if it is zero throughout: a head that starts at zero would silence every score in the network."""
    positive = weight.detach().abs()
    return positive if bool(positive.any()) else torch.ones_like(positive)


class LinearNetwork:
    """The steps from input to output, made by :func:`synflow_pl.flow.linearise`.

    Attributes:
        weights: names of the parameters that the flow passes through.
        compressible: those of them whose living block alone can be given to :meth:`flow`.
        stretch: the largest number of weight layers between two cuts.
        dtype: the precision to score in: the network's own if its cuts keep float32 in range, else
            float64.
        gated: whether one signal gates another somewhere, so that there may be weights without flow
            by construction.
        separating: names of the weights that every path from input to output passes, once: a
            chain's layers.
        silent: names of multiplicative parameters that are zero throughout and count as ones.
        uneven: names of the weights of which a removed entry is no zero in the kernel that is used
            (standardised weights).
        partial: whether the network also returns booleans or whole numbers made of flow, which are
            no outputs of the skeleton.
    """

    uneven: frozenset[str] = frozenset()
    partial: bool = False

    def __init__(
        self,
        steps: list[Node],
        inputs: dict[int, Tensor],
        parameters: dict[int, Tensor],
        names: dict[int, str],
        constants: dict[int, Tensor],
        gains: Collection[int],
        silent: Mapping[int, Collection[str]],
        outputs: tuple[int, ...],
        flow: Collection[int],
        gated: bool,
    ) -> None:
        self._steps = _needed(steps, outputs)
        self._outputs = outputs
        read = {number for step in self._steps for number in step.operands}
        self._names = {number: name for number, name in names.items() if number in read}
        self._parameters = {number: parameters[number] for number in self._names}
        self._constants = {
            number: tensor for number, tensor in (inputs | constants).items() if number in read
        }
        self._gains = read.intersection(gains)
        self._sources = read.intersection(inputs)
        self.gated = gated
        self.weights = frozenset(self._names.values())
        self.compressible = frozenset(
            step.weight for step in self._steps if step.weight is not None
        )
        zero = [
            name for number, name in self._names.items() if not bool(self._parameters[number].any())
        ]
        self.silent = frozenset(zero).union(
            *(silent[number] for number in self._gains if number in silent)
        )
        self._units = {name: parameters[number].shape[0] for number, name in self._names.items()}
        self._cut_before, self.stretch, crossed = cuts(
            self._steps, set(flow), inputs.keys() & read, outputs
        )
        self._flow = frozenset(flow)
        self._acting = _acting(self._steps, self._flow, self._names)
        readers = Counter(name for acting in self._acting.values() for name in acting)
        alone = {
            acting[0] for index in crossed if len(acting := self.acting(self._steps[index])) == 1
        }
        self.separating = frozenset(name for name in alone if readers[name] == 1)
        own = next(iter(self._parameters.values())).dtype if self._parameters else torch.float32
        lowest = torch.float32 if own in (torch.float16, torch.bfloat16) else own
        self.dtype = torch.float64 if self.stretch > LONGEST_STRETCH else lowest
        self._last_use = _last_uses(self._steps, outputs)
        # Which of a step's arguments have to be filled in, in each pass.
        self._open = [
            [any(type(leaf) is Value for leaf in _leaves(item)) for item in step.args]
            for step in self._steps
        ]

    def flow(
        self,
        weights: Mapping[str, Tensor],
        blocks: Mapping[str, Block] = MappingProxyType({}),
        *,
        gains: bool = True,
        watch: Callable[[Node | None, Sequence[Any]], None] | None = None,
        compute: Callable[[Callable[..., Any], Node, Sequence[Any]], Any] | None = None,
        into: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Tensor:
        """R up to a power of two: the sum of the skeleton's outputs for an input of ones.

        Args:
            weights: non-negative tensors by parameter name. A weight of the skeleton that is not
                among them counts with its own magnitude.
            blocks: of the weights among them that are cut down to their living units and inputs.
            gains: ``False`` replaces gains, and the weights not given, by ones: what is left is the
                structure.
            watch: called with each step and its arguments, and with ``None`` and, at each cut, the
                value and what it was divided by.
            compute: called with each step's function, the step and its arguments, to give what the
                step does instead of calling it.
            into: where gradients of these weights may be written once they are asked for, in the
                weights' shapes.

        Returns:
            A scalar, zero exactly if no path is left (or flow underflows).
        """
        dtype = next(iter(weights.values())).dtype if weights else self.dtype
        values: dict[int, Any] = {}
        for number, constant in self._constants.items():
            structural = not gains and number in self._gains
            values[number] = (
                torch.ones_like(constant, dtype=dtype) if structural else constant.to(dtype)
            )
        for number, name in self._names.items():
            if name in weights:
                values[number] = weights[name]
            else:
                fixed = self._parameters[number].to(dtype)
                values[number] = magnitude(fixed) if gains else torch.ones_like(fixed)
        for index, step in enumerate(self._steps):
            if index in self._cut_before:
                number = self._cut_before[index]
                power = power_of_two_scale(values[number])
                values[number] = values[number] / power
                if watch is not None:
                    watch(None, [values[number], power])
            arguments = [
                _fill(item, values) if open_ else item
                for item, open_ in zip(step.args, self._open[index], strict=True)
            ]
            if watch is not None:
                watch(step, arguments)
            result: Any
            kernel = step.function
            if step.weight is not None and step.weight in into:
                kernel = partial(
                    convolve if kernel is convolve else multiply, into=into[step.weight]
                )
            if step.weight is not None and step.weight in blocks:
                result = _through_block(
                    kernel, arguments, blocks[step.weight], self._units[step.weight]
                )
            else:
                function = partial(
                    kernel, **{key: _fill(item, values) for key, item in step.kwargs.items()}
                )
                result = (
                    function(*arguments) if compute is None else compute(function, step, arguments)
                )
            if isinstance(result, (tuple, list)):
                values.update(zip(step.outputs, result, strict=True))
            else:
                values[step.outputs[0]] = result
            for number in self._last_use.get(index, ()):
                del values[number]
        return sum(
            (values[number].sum() for number in self._outputs),
            start=torch.zeros((), dtype=dtype, device=self._device),
        )

    def gradients(
        self,
        weights: Mapping[str, Tensor],
        blocks: Mapping[str, Block] = MappingProxyType({}),
        *,
        gains: bool = True,
        compute: Callable[[Callable[..., Any], Node, Sequence[Any]], Any] | None = None,
        into: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> dict[str, Tensor]:
        """dR/dw for each of ``weights``, up to one power of two that all of them share: times w,
        the synaptic saliency (Tanaka et al. 2020, Equations 1 and 2).

        Args:
            weights: non-negative tensors by parameter name, each one of ``self.weights``.
            blocks: of the weights among them that are cut down to their living units and inputs.
            gains: as in :meth:`flow`.
            compute: as in :meth:`flow`.
            into: gradients of an earlier call whose memory may be used again, for some of the same
                weights or for blocks of them. Their memory layout does not matter; one that does
                not fill its memory (an expanded tensor) is left alone.

        Returns:
            Non-negative tensors in the weights' shapes, in any memory layout; each of them may be
            written to.
        """
        if not weights:
            return {}
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        rooms = {name: _room(memory, leaves[name].shape) for name, memory in into.items()}
        reused = {name: room for name, room in rooms.items() if room is not None}
        with torch.enable_grad():
            total = self.flow(leaves, blocks, gains=gains, compute=compute, into=reused)
        return dict(
            zip(leaves, _separate(torch.autograd.grad(total, list(leaves.values()))), strict=True)
        )

    def unknown(self, weights: Mapping[str, Tensor]) -> dict[str, float | None]:
        """The operations that the skeleton has no rule for, by name, each with how far its stand-in
        is off on the flow through
        ``weights``: the sum of differences over the sum of the true values; the worst where an
        operation is met several times, and ``None`` where that cannot be computed.
        """
        found: dict[str, float | None] = {}

        def watch(step: Node | None, arguments: Sequence[Any]) -> None:
            if step is not None and isinstance(step.function, Fallback):
                known = (found.get(step.function.operation), step.function.off(arguments[0]))
                found[step.function.operation] = max(
                    (off for off in known if off is not None), default=None
                )

        if any(isinstance(step.function, Fallback) for step in self._steps):
            with torch.no_grad():
                self.flow(weights, watch=watch)
        return found

    def acting(self, step: Node) -> tuple[str, ...]:
        """Names of the weights that act on the signal in a step; none unless it is a
        contraction.
        """
        return self._acting.get(step.outputs[0], ())

    @property
    def meetings(self) -> list[Meeting]:
        """The functions of the steps in which two signals meet, where paths are looked for."""
        return [step.function for step in self._steps if isinstance(step.function, Meeting)]

    def reads_flow(self, step: Node) -> bool:
        """Return whether a step reads a value that carries flow."""
        return not self._flow.isdisjoint(step.operands)

    def arrives(self, step: Node, arguments: Sequence[Any]) -> bool:
        """Whether any flow arrives at a step, given its arguments."""
        given = zip(step.args, arguments, strict=True)
        return any(
            bool(item.any())
            for value, item in given
            if isinstance(value, Value) and value.number in self._flow
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not as it should be, for a report: the operations without a rule, on the flow
        through the network as it is.
        """
        off = [
            f"{name} (off by {share:.0%})" if share is not None else name
            for name, share in self.unknown({}).items()
        ]
        notes = (
            [f"operations without a rule, taken for the identity or an average: {', '.join(off)}"]
            if off
            else []
        )
        if self.uneven:
            names = ", ".join(sorted(self.uneven))
            notes.append(
                f"removed weights are not zero in the kernel that is computed from them (standardised weights): {names}"
            )
        return tuple(notes)

    def conservation(self, weights: Mapping[str, Tensor]) -> float:
        """How far flow is from being conserved (Tanaka et al. 2020, Theorem 2), in [0, inf): what
        passes through each cut, the sum of value * dR/dvalue, against R; the largest relative
        difference over all cuts. Zero but for rounding.
        """
        crossed: list[Tensor] = []

        def watch(step: Node | None, arguments: Sequence[Any]) -> None:
            if step is None:
                crossed.append(arguments[0])

        dtype = next(iter(weights.values())).dtype if weights else self.dtype
        sources = {number: self._constants[number] for number in self._sources}
        leaves = {
            number: tensor.to(dtype, copy=True).requires_grad_()
            for number, tensor in sources.items()
        }
        self._constants.update(leaves)
        try:
            with torch.enable_grad():
                total = self.flow(
                    {name: weight.detach() for name, weight in weights.items()}, watch=watch
                )
            through = torch.autograd.grad(total, [*leaves.values(), *crossed])
        finally:
            self._constants.update(sources)
        passing = [
            (value * gradient).sum().detach()
            for value, gradient in zip([*leaves.values(), *crossed], through, strict=True)
        ]
        entering = torch.stack(passing[: len(leaves)]).sum()
        return max(
            float((flow / total.detach() - 1).abs()) for flow in (entering, *passing[len(leaves) :])
        )

    @property
    def _device(self) -> torch.device:
        return next(iter(self._constants.values())).device


def _through_block(
    function: Callable[..., Tensor], arguments: Sequence[Any], block: Block, units: int
) -> Tensor:
    signal, weight, *rest = arguments
    part = function(signal.index_select(1, block.inputs), weight, *rest)
    return part.new_zeros(part.shape[0], units, *part.shape[2:]).index_copy(1, block.units, part)


def _room(memory: Tensor, shape: torch.Size) -> Tensor | None:
    """The memory of a tensor as a contiguous tensor of this shape, or ``None`` where its entries
    overlap or have gaps between them.

    Autograd returns a gradient in whatever layout its kernel wrote: a convolution at few positions
        returns it in channels-last order.
    """
    in_order = memory.permute(sorted(range(memory.dim()), key=memory.stride, reverse=True))
    return in_order.view(-1)[: shape.numel()].view(shape) if in_order.is_contiguous() else None


def _separate(gradients: Sequence[Tensor]) -> list[Tensor]:
    """These gradients, each in memory of its own: that of a sum is one number expanded, and two
    terms of a sum share theirs.
    """
    taken: set[int] = set()
    separate = []
    for gradient in gradients:
        if gradient.data_ptr() in taken or _room(gradient, gradient.shape) is None:
            gradient = gradient.clone(memory_format=torch.contiguous_format)
        taken.add(gradient.data_ptr())
        separate.append(gradient)
    return separate


def _leaves(argument: Any) -> list[Any]:
    return tree_leaves(argument, is_leaf=lambda leaf: isinstance(leaf, Value))


def _fill(argument: Any, values: Mapping[int, Any]) -> Any:
    if type(argument) is Value:
        return values[argument.number]
    if type(argument) in (tuple, list):
        return [_fill(item, values) for item in argument]
    return argument


def _needed(steps: list[Node], outputs: tuple[int, ...]) -> list[Node]:
    """The steps that an output depends on, in order."""
    wanted = set(outputs)
    kept = []
    for step in reversed(steps):
        if wanted.intersection(step.outputs):
            wanted.update(step.operands)
            kept.append(step)
    return kept[::-1]


def _acting(
    steps: list[Node], flow: frozenset[int], names: Mapping[int, str]
) -> dict[int, tuple[str, ...]]:
    """By the number of its output, the names of the weights that act in each contraction: read as
    they are or in another form.
    """
    origin: dict[int, tuple[str, ...]] = {number: (name,) for number, name in names.items()}
    acting: dict[int, tuple[str, ...]] = {}
    for step in steps:
        made_of = tuple(
            dict.fromkeys(name for number in step.operands for name in origin.get(number, ()))
        )
        if not flow.intersection(step.operands):
            origin.update(dict.fromkeys(step.outputs, made_of))
        elif step.contraction:
            acting[step.outputs[0]] = made_of
    return acting


def _last_uses(steps: list[Node], outputs: tuple[int, ...]) -> dict[int, list[int]]:
    """By step index, the computed values that are not needed after it."""
    made = {number for step in steps for number in step.outputs if number >= 0}
    last = {
        number: index
        for index, step in enumerate(steps)
        for number in (*step.outputs, *step.operands)
        if number in made
    }
    release: dict[int, list[int]] = {}
    for number, index in last.items():
        if number not in outputs:
            release.setdefault(index, []).append(number)
    return release
