"""Detection of residual networks.

A shortcut adds a signal to the output of layers that read it, so the longest paths to the two
summands have different numbers of layers. Sums within one layer (a bias, a mean that is subtracted,
an activation written as a polynomial) add signals of the same depth, and dense connections
(DenseNet, Inception, U-Net) concatenate.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Hashable, Iterable

import torch
from torch import Tensor, fx, nn

from synflow_pl.flow import acting_parameters, trace
from synflow_pl.graph import operators
from synflow_pl.graph.network_copy import duplicate
from synflow_pl.prunable_parameters import layer_weights

__all__ = ["is_residual"]

_FUNCTIONS = (operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub)
_METHODS = (
    "add",
    "add_",
    "sub",
    "sub_",
    "__add__",
    "__iadd__",
    "__radd__",
    "__sub__",
    "__isub__",
    "__rsub__",
)


def is_residual(network: nn.Module, inputs: tuple[Tensor, ...] | None) -> bool:
    """Return whether the network adds signals of different depths.

    Args:
        network: Any module with prunable weights; it is not changed.
        inputs: Example inputs with the batch dimension. Without them, ``torch.fx`` traces the
            network's code.

    Raises:
        ValueError: If there are no example inputs and ``torch.fx`` cannot trace the network.
    """
    return _adds_in_trace(network, inputs) if inputs is not None else _adds_in_code(network)


class _Depths:
    """Number of layers on the longest path from the input to each value of a computation.

    Args:
        inputs: Keys of the network's inputs.
        weights: Keys of its prunable weights.
    """

    def __init__(self, inputs: Iterable[Hashable], weights: Iterable[Hashable]) -> None:
        self._depths = dict.fromkeys(inputs, 0)
        self._weights = set(weights)

    def step(
        self,
        reads: Collection[Hashable],
        outputs: Iterable[Hashable],
        *,
        layer: bool = False,
        adds: bool = False,
    ) -> bool:
        """Process one operation; return whether it adds signals of different depths.

        Args:
            reads: Keys of the values that it reads.
            outputs: Keys of the values that it computes.
            layer: Whether it applies weights of its own.
            adds: Whether it adds or subtracts the values that it reads.
        """
        depths = [self._depths[key] for key in reads if key in self._depths]
        weighted = layer or any(key in self._weights for key in reads)
        if depths:
            self._depths.update(dict.fromkeys(outputs, max(depths) + weighted))
        elif weighted:
            self._weights.update(outputs)  # a reshaped or standardised weight is a weight
        return adds and len(set(depths)) > 1


def _adds_in_trace(network: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    recording = trace(network, inputs)
    layers = {*layer_weights(network), *acting_parameters(network, recording)}
    weights = (number for number, name in recording.parameters.items() if name in layers)
    depths = _Depths((value.number for value in recording.inputs), weights)
    differs = [
        depths.step(
            [value.number for value in operation.reads],
            [value.number for value in operation.results],
            adds=operation.name in operators.SUMS,
        )
        for operation in recording.operations
    ]
    return any(differs)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children()) or isinstance(m, nn.MultiheadAttention)


def _adds_in_code(network: nn.Module) -> bool:
    # Tensors that forward() stores on the module would be replaced by proxies.
    network = duplicate(network)
    layers = layer_weights(network)
    owned = {id(parameter) for parameter in layers.values()}
    modules = dict(network.named_modules())
    try:
        graph = _Tracer().trace(network)
    except Exception as error:
        raise ValueError(
            f"smart_ratio depends on whether {type(network).__name__} is a residual network, which"
            " cannot be read off its code (torch.fx fails on it); give input_shape= or"
            " example_input=, or Random(residual=True) or (residual=False)"
        ) from error
    inputs = (node for node in graph.nodes if node.op == "placeholder")
    depths = _Depths(
        inputs, (node for node in graph.nodes if node.op == "get_attr" and node.target in layers)
    )
    differs = []
    for node in graph.nodes:
        layer = node.op == "call_module" and any(
            id(p) in owned for p in modules[str(node.target)].parameters()
        )
        adds = (
            node.target in _FUNCTIONS
            if node.op == "call_function"
            else node.op == "call_method" and node.target in _METHODS
        )
        differs.append(depths.step(node.all_input_nodes, [node], layer=layer, adds=adds))
    return any(differs)
