"""Connectivity: which kept weights lie on a path from input to output of a pruned network.

The result depends on the structure of the network at the real size of its inputs: a unit is a
(channel, position) pair, and padding contributes no unit. Masks replace weights and ones replace
gains. Attention connects any two tokens that it does not mask out. Whatever gates a signal (a gate,
queries, keys) is connected to everything that it acts on, including constants that come from a
bias. A weight that is computed from others (a standardised one) is connected where it is nonzero,
whatever was pruned. The number of paths can leave the range of any floating-point type, so each
intermediate value is replaced by one where it is positive.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from synflow_pl.flow.acting_parameters import graph_weights
from synflow_pl.flow.linear_network import LinearNetwork
from synflow_pl.flow.linearise import linearise
from synflow_pl.flow.maxima import SELECTIONS
from synflow_pl.flow.meetings import Meeting
from synflow_pl.flow.node import Node
from synflow_pl.flow.replay import Replay, computed_weights, without_zeros
from synflow_pl.graph.trace import Graph, Value, trace
from synflow_pl.masks import Masks
from synflow_pl.numerics import without_onednn

__all__ = ["Connectivity", "DeadNetwork", "disconnection_message", "is_connected"]


class DeadNetwork(RuntimeError):
    """No path of kept weights connects input and output."""


def disconnection_message(
    density: float,
    first_disconnected: str | None,
    emptied: Collection[str],
    died: tuple[int, float] | None = None,
) -> str:
    """Describe a disconnected network in one sentence without a full stop.

    Args:
        density: Fraction of prunable weights kept.
        first_disconnected: Name of the weight that :meth:`Connectivity.first_disconnected` returns.
        emptied: Names of the weights that are pruned completely.
        died: Round after which the network was disconnected and the density after it, if known.
    """
    where = ""
    if first_disconnected is not None:
        why = (
            "has no weight left"
            if first_disconnected in emptied
            else "has weights left, but none on a path from the input"
        )
        where = f"; it breaks at {first_disconnected!r}, which {why}"
    when = (
        f"since round {died[0]}, at density {died[1]:.6g}" if died else f"at density {density:.6g}"
    )
    return (
        f"the network is dead: no path of kept weights leads from input to output {when}{where};"
        " try more rounds, a larger density, another scope (local)"
    )


class Connectivity:
    """Finds the paths of kept weights through a network, whatever the values of its weights.

    Args:
        network: The network under study.
        inputs: Example inputs, as returned by :func:`synflow_pl.flow.example_of`.
        graph: Graph of the network, if it has been traced already.
        linear_network: Linear network of the network, if it has been built already. It is used if
            it shows all paths, which it does without gates, computed weights and integer outputs.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from synflow_pl.flow import Connectivity
        >>> from synflow_pl.masks import Masks
        >>> network = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> mask = torch.tensor([[True, False]])
        >>> masks = Masks({"0.weight": mask, "1.weight": torch.tensor([[True]])})
        >>> Connectivity(network, (torch.ones(1, 2),)).is_connected(masks)
        True
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: tuple[Tensor, ...],
        graph: Graph | None = None,
        linear_network: LinearNetwork | None = None,
    ) -> None:
        self._meetings: Replay | None = None
        self._computed: Replay | None = None
        self._parameters: dict[str, Tensor] = {}
        if (
            linear_network is None
            or linear_network.gated
            or linear_network.nonzero_after_masking
            or linear_network.partial
        ):
            graph = trace(network, inputs) if graph is None else graph
            linear_network = linearise(network, inputs, graph, open_gates=True)
            parameters = {
                name: parameter.detach() for name, parameter in network.named_parameters()
            }
            if linear_network.meetings:
                self._meetings = Replay(
                    graph,
                    {number for met in linear_network.meetings for number in (met.signal, met.by)},
                )
                self._parameters = parameters
            if computed := computed_weights(graph, graph_weights(network, graph)):
                self._computed = Replay(graph, computed)
                # A gain that is zero does not disconnect the network, here or elsewhere.
                self._drawn = without_zeros(
                    {name: parameters[name] for name in self._computed.names if name in parameters}
                )
        self._linear_network = linear_network
        # In single precision, Winograd convolution leaves rounding errors where the result is zero.
        # cuDNN and oneDNN use it; without oneDNN the CPU computes matrix products.
        self._device = inputs[0].device
        single = self._device.type == "mps" or (
            self._device.type == "cpu" and linear_network.dtype != torch.float64
        )
        self._dtype = torch.float32 if single else torch.float64

    @without_onednn()
    def is_connected(self, masks: Masks) -> bool:
        """Return whether a path of kept weights connects input and output."""
        flow = self._linear_network.flow(
            self._structure(masks), gains=False, compute=self._connecting(masks)
        )
        return bool(flow > 0)

    @without_onednn()
    def first_disconnected(self, masks: Masks) -> str | None:
        """Return the name of the first weight past which no path leads, or ``None`` if connected.

        The weight comes first in the order in which the network reads its weights. It may have
        entries that are kept: either none of them reads a unit that is reached, or nothing reads
        their outputs.
        """
        reached: list[str] = []
        connecting = self._connecting(masks)

        def connect(function: Callable[..., Any], node: Node, arguments: Sequence[Any]) -> Any:
            names = self._linear_network.weights_of(node)
            if names and self._linear_network.receives_flow(node, arguments):
                reached.append(names[0])
            return connecting(function, node, arguments)

        flow = self._linear_network.flow(self._structure(masks), gains=False, compute=connect)
        return None if bool(flow > 0) else reached[-1]

    @without_onednn()
    def effective(self, masks: Masks) -> dict[str, Tensor]:
        """Return which weights lie on a path of kept weights from input to output.

        Returns:
            Boolean tensors in the shape of the masks, by parameter name.
        """
        structure = self._structure(masks)
        on = self._linear_network.gradients(structure, gains=False, compute=self._connecting(masks))
        return {
            name: masks[name] & (on[name] > 0).to(masks[name].device)
            if name in on
            else torch.zeros_like(masks[name])
            for name in masks.weights
        }

    def _connecting(self, masks: Masks) -> Callable[[Callable[..., Any], Node, Sequence[Any]], Any]:
        """Return the function that computes the connections of a node under these masks.

        It is the argument ``compute`` of :meth:`LinearNetwork.flow`.
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

        def connect(function: Callable[..., Any], node: Node, arguments: Sequence[Any]) -> Any:
            if any(
                isinstance(value, Value) and value.number in zeros for value in node.args
            ) and self._linear_network.reads_flow(node):
                arguments = [
                    _Support.apply(item, zeros[value.number])
                    if isinstance(value, Value) and value.number in zeros
                    else item
                    for value, item in zip(node.args, arguments, strict=True)
                ]
            if isinstance(node.function, Meeting):
                return _Mark.apply(node.function.connect(arguments, values))
            return _connect(function, node, arguments)

        return connect

    def _structure(self, masks: Masks) -> dict[str, Tensor]:
        return {
            name: masks[name].to(self._device, self._dtype)
            for name in masks.weights
            if name in self._linear_network.weights
        }


def is_connected(network: nn.Module, masks: Masks, inputs: tuple[Tensor, ...]) -> bool:
    """Return whether a path of kept weights connects input and output.

    Args:
        network: The network under study.
        masks: Masks of the network.
        inputs: Example inputs, as returned by :func:`synflow_pl.flow.example_of`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from synflow_pl.flow import is_connected
        >>> from synflow_pl.masks import Masks
        >>> masks = Masks({"weight": torch.tensor([[True, False]])})
        >>> is_connected(nn.Linear(2, 1), masks, (torch.ones(1, 2),))
        True
    """
    return Connectivity(network, inputs).is_connected(masks)


class _Mark(torch.autograd.Function):
    """Replaces positive entries by ones, in the forward and in the backward pass."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return (value > 0).to(value.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return (gradients[0] > 0).to(gradients[0].dtype)


class _Support(torch.autograd.Function):
    """Replaces the nonzero entries of a computed weight by ones.

    In the backward pass, positive gradients become ones, whether the entry of the weight is zero or
    not.
    """

    @staticmethod
    def forward(context: Any, value: Tensor, zero: Tensor) -> Tensor:
        return (~zero).to(value.dtype).view(value.shape)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return (gradients[0] > 0).to(gradients[0].dtype), None


def _connect(function: Callable[..., Any], node: Node, arguments: Sequence[Any]) -> Any:
    """Return the connections of a node; an operation that selects entries connects all of them."""
    chosen = SELECTIONS.get(node.name)
    result = function(*arguments) if chosen is None else chosen(function, *arguments)
    return tree_map(
        lambda leaf: (
            _Mark.apply(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
        ),
        result,
    )
