"""Paths: what still leads from the input to the output of a pruned network.

Decided on the structure alone, at the inputs' real size: a unit is a (channel, position) pair,
padding is none. Masks stand in for weights and ones for gains; attention connects any two tokens
that it does not mask out, and what gates a signal (a gate, queries, keys) is connected to all that
it acts on, constants that a bias makes included. A weight that is computed from others (a
standardised one) is connected where it is not zero, whatever was removed. Nothing is summed up: a
number of paths can leave any range, so after each step all that is left of a number is whether it
is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

from synflow_pl.flow.convolution import widened
from synflow_pl.flow.linear_network import LinearNetwork, Node
from synflow_pl.flow.linearise import linearise
from synflow_pl.flow.meetings import Meeting
from synflow_pl.flow.replay import Replay, computed_weights, draws
from synflow_pl.graph.trace import Graph, Value, trace
from synflow_pl.masks import Masks, prunable

__all__ = ["Connectivity", "DeadNetwork", "disconnection_message", "is_connected"]


class DeadNetwork(RuntimeError):
    """No path of kept weights leads from input to output."""


def disconnection_message(
    density: float,
    broken: str | None,
    emptied: Collection[str],
    died: tuple[int, float] | None = None,
) -> str:
    """Describe a dead network in one sentence, without a full stop.

    Args:
        density: fraction of prunable weights kept.
        broken: the weight past which no path leads, as :meth:`Connectivity.broken` names it.
        emptied: names of the weights of which nothing is kept.
        died: the round after which no path was left and the density after it, where they are known.
    """
    where = ""
    if broken is not None:
        why = (
            "has no weight left"
            if broken in emptied
            else "has weights left, but none on a path from the input"
        )
        where = f"; it breaks at {broken!r}, which {why}"
    when = (
        f"since round {died[0]}, at density {died[1]:.6g}" if died else f"at density {density:.6g}"
    )
    return (
        f"the network is dead: no path of living weights leads from input to output {when}{where};"
        " try more rounds, a larger density, another scope (local)"
    )


class Connectivity:
    """What is connected in a network, whatever its weights are.

    Args:
        network: the network under study.
        inputs: as :func:`synflow_pl.flow.example_of` gives them.
        recording: the network's recording, where one is at hand.
        skeleton: the network's skeleton, where one is at hand; without gates, computed weights and
            decisions it shows all paths.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: tuple[Tensor, ...],
        recording: Graph | None = None,
        skeleton: LinearNetwork | None = None,
    ) -> None:
        self._meetings: Replay | None = None
        self._computed: Replay | None = None
        self._parameters: dict[str, Tensor] = {}
        if skeleton is None or skeleton.gated or skeleton.uneven or skeleton.partial:
            recording = trace(network, inputs) if recording is None else recording
            skeleton = linearise(network, inputs, recording, open_gates=True)
            parameters = {
                name: parameter.detach() for name, parameter in network.named_parameters()
            }
            if skeleton.meetings:
                self._meetings = Replay(
                    recording,
                    {number for met in skeleton.meetings for number in (met.signal, met.by)},
                )
                self._parameters = parameters
            if acting := computed_weights(recording, prunable(network)):
                self._computed = Replay(recording, acting)
                # As everywhere in the structure, a gain that is zero is no reason to die.
                self._drawn = draws(
                    {name: parameters[name] for name in self._computed.names if name in parameters}
                )
        self._skeleton = skeleton
        # Double precision, since single may be convolved by a transform (Winograd's) that leaves
        # crumbs where nothing is.
        self._device = inputs[0].device
        self._dtype = torch.float32 if self._device.type == "mps" else torch.float64

    def left(self, masks: Masks) -> bool:
        """Whether a path of living weights is left from input to output: a network without one is
        dead, whatever its layers hold.
        """
        return bool(
            self._skeleton.flow(
                self._structure(masks), gains=False, compute=self._connecting(masks)
            )
            > 0
        )

    def broken(self, masks: Masks) -> str | None:
        """Where a dead network breaks: the first weight past which no path of living weights from
        the input leads, in the order in which the network reads them; ``None`` if it is alive. That
        weight may well have living entries: none of them reads what is reached, or nothing reads
        them.
        """
        reached: list[str] = []
        connecting = self._connecting(masks)

        def connect(function: Callable[..., Any], step: Node, arguments: Sequence[Any]) -> Any:
            if (acting := self._skeleton.acting(step)) and self._skeleton.arrives(step, arguments):
                reached.append(acting[0])
            return connecting(function, step, arguments)

        left = self._skeleton.flow(self._structure(masks), gains=False, compute=connect) > 0
        return None if bool(left) else reached[-1]

    def effective(self, masks: Masks) -> dict[str, Tensor]:
        """By name, bool: which weights lie on a path of living weights from input to output, in the
        shape of their masks.
        """
        structure = self._structure(masks)
        on = self._skeleton.gradients(structure, gains=False, compute=self._connecting(masks))
        return {
            name: masks[name] & (on[name] > 0).to(masks[name].device)
            if name in on
            else torch.zeros_like(masks[name])
            for name in masks.weights
        }

    def _connecting(self, masks: Masks) -> Callable[[Callable[..., Any], Node, Sequence[Any]], Any]:
        """Return the function that computes what a step connects with these masks, for
        :meth:`LinearNetwork.flow`.
        """
        met: dict[int, Tensor] = {}
        zeros: dict[int, Tensor] = {}
        if self._computed is not None:
            drawn = {
                name: value * masks[name].to(value) if name in masks else value
                for name, value in self._drawn.items()
            }
            zeros = {
                number: (value == 0) | value.isnan()
                for number, value in self._computed.values(drawn).items()
            }

        def values(number: int) -> Tensor:
            if not met:
                assert self._meetings is not None
                masked = {
                    name: self._parameters[name] * masks[name].to(self._parameters[name])
                    for name in masks
                }
                met.update(self._meetings.values(self._parameters | masked))
            return met[number]

        def connect(function: Callable[..., Any], step: Node, arguments: Sequence[Any]) -> Any:
            if any(
                isinstance(value, Value) and value.number in zeros for value in step.args
            ) and self._skeleton.reads_flow(step):
                arguments = [
                    _Support.apply(item, zeros[value.number])
                    if isinstance(value, Value) and value.number in zeros
                    else item
                    for value, item in zip(step.args, arguments, strict=True)
                ]
            if isinstance(step.function, Meeting):
                return _Mark.apply(step.function.connect(arguments, values))
            return _connect(function, step, arguments)

        return connect

    def _structure(self, masks: Masks) -> dict[str, Tensor]:
        return {
            name: masks[name].to(self._device, self._dtype)
            for name in masks.weights
            if name in self._skeleton.weights
        }


def is_connected(network: nn.Module, masks: Masks, inputs: tuple[Tensor, ...]) -> bool:
    """Whether a path of living weights is left from input to output.

    Args:
        network: the network under study.
        masks: its masks.
        inputs: as :func:`synflow_pl.flow.example_of` gives them.
    """
    return Connectivity(network, inputs).left(masks)


class _Mark(torch.autograd.Function):
    """Ones where something is, forwards and backwards."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return (value > 0).to(value.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return (gradients[0] > 0).to(gradients[0].dtype)


class _Support(torch.autograd.Function):
    """Ones where a computed weight is not zero; backwards, the gradient of what it is computed
    from.
    """

    @staticmethod
    def forward(context: Any, value: Tensor, zero: Tensor) -> Tensor:
        return (~zero).to(value.dtype).view(value.shape)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return (gradients[0] > 0).to(gradients[0].dtype), None


def _connect(function: Callable[..., Any], step: Node, arguments: Sequence[Any]) -> Any:
    """What a step connects: all that it may choose from counts as chosen."""
    chosen = _CHOICES.get(step.name)
    result = function(*arguments) if chosen is None else chosen(function, *arguments)
    return tree_map(
        lambda leaf: (
            _Mark.apply(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
        ),
        result,
    )


def _window(
    function: Callable[..., Any],
    signal: Tensor,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    *_: Any,
) -> Any:
    """Max pooling: the sum over each window."""
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
    with torch.no_grad():
        _, indices = function(signal, size)
    average: Any = (
        functional.adaptive_avg_pool1d,
        functional.adaptive_avg_pool2d,
        functional.adaptive_avg_pool3d,
    )[len(size) - 1]
    return average(signal, size), indices


def _largest(function: Callable[..., Any], signal: Tensor, *arguments: Any) -> Any:
    """A maximum along one dimension, or all of them, or of two signals."""
    result = function(signal, *arguments)
    if arguments and isinstance(arguments[0], Tensor):
        return signal + arguments[0]
    if isinstance(result, Tensor):
        return signal.sum(*arguments) if arguments else signal.sum()
    return signal.sum(*arguments), result[1]


def _several(dimension: int) -> Callable[..., Any]:
    """A choice of several along one dimension, which stands at this place among the arguments: any
    may be among them.
    """

    def choose(function: Callable[..., Any], signal: Tensor, *arguments: Any) -> Any:
        values, indices = function(signal, *arguments)
        dim = arguments[dimension] if len(arguments) > dimension else -1
        return signal.sum(dim, keepdim=True).expand_as(values), indices

    return choose


def _either(function: Callable[..., Any], left: Tensor, right: Tensor) -> Tensor:
    return left + right


_CHOICES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("max_pool1d", "max_pool2d_with_indices", "max_pool3d_with_indices"), _window),
    **dict.fromkeys(
        ("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"), _adaptive_window
    ),
    **dict.fromkeys(("max", "amax"), _largest),
    **dict.fromkeys(("maximum", "minimum"), _either),
    "topk": _several(1),
    "sort": _several(0),
    "cummax": lambda function, signal, dim: (signal.cumsum(dim), function(signal, dim)[1]),
}
