"""Values: what each value of a traced graph is in the positive linear network.

The values of the graph are of three kinds. Values that carry *flow* depend on the input. Values in
*weights* depend on prunable parameters and on no input; their magnitudes are passed in at each
evaluation. All other values are known once the network has been traced: such a value counts as zero
where it is added and as its magnitude (a gain) where it multiplies.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from synflow_pl.graph.noise import average
from synflow_pl.graph.operation import map_values
from synflow_pl.graph.trace import Graph, Operation, Value, is_number

__all__ = ["TracedValues"]


class TracedValues:
    """Values of a graph, and the arguments that nodes of the linear network take for them.

    Args:
        graph: Graph of the network, made by :func:`synflow_pl.flow.trace`.
        weights: Names of the prunable parameters.
        parameters: Names of all parameters; every other name in the graph is a buffer.

    Attributes:
        flow: Numbers of the values that carry flow.
        weights: Numbers of the values that depend on prunable parameters and on no input.
        input_dependent: Numbers of the values that depend on the input but carry no flow: integers,
            indices, results of comparisons. Where an operation converts them to floating point,
            flow starts at its output or, if they were computed from values that carry flow,
            continues.
    """

    def __init__(self, graph: Graph, weights: Collection[str], parameters: Collection[str]) -> None:
        self.graph = graph
        self.flow = {value.number for value in graph.inputs if is_number(self.tensor(value))}
        self.input_dependent = {value.number for value in graph.inputs} - self.flow
        self.weights = {number for number, name in graph.parameters.items() if name in weights}
        # The signals that each input-dependent value was computed from, by number.
        self._made_from: dict[int, tuple[Value, ...]] = {}
        # The operations that compute values from random numbers and constants, by output number.
        self._random: dict[int, Operation] = {}
        self._origin = {
            number: {name} for number, name in graph.parameters.items() if name in parameters
        }
        self._constants: dict[int, Tensor] = {}
        self._gains: set[int] = set()
        self._all_zero: dict[int, set[str]] = {}
        self._alias: dict[int, int] = {}
        self._carried = self.flow

    def tensor(self, value: Value) -> Tensor:
        """Return the tensor that a value had when the network was traced."""
        return self.graph.tensors[value.number]

    def resolve(self, value: Value) -> Value:
        """Return the value that stands for this one in the linear network."""
        number = value.number
        while number in self._alias:
            number = self._alias[number]
        return Value(number)

    def is_random(self, value: Value) -> bool:
        """Return whether a value was computed from random numbers and carries no flow."""
        return value.number in self._random or value.number in self.graph.noise

    def average(self, value: Value) -> Tensor:
        """Return the mean, in floating point, of a value for which :meth:`is_random` is true."""
        return average(value.number, self._random, self.graph.noise, self.graph.tensors)

    def carries(self, argument: Any) -> bool:
        """Return whether an argument of the current operation carries flow.

        If the operation reads no flow, return whether the argument depends on prunable parameters.
        """
        return isinstance(argument, Value) and self.resolve(argument).number in self._carried

    @property
    def in_weights(self) -> bool:
        """Return whether the current operation reads weights and no flow."""
        return self._carried is self.weights

    def operand(self, argument: Any) -> Any:
        """Return an argument as a node of the linear network takes it.

        Flow and weights become references, integers and booleans stay as they were traced. Any
        other floating-point tensor (a class token beside the patches, say) is an additive term and
        becomes zero.
        """

        def replace(value: Value) -> Any:
            if self._is_variable(value):
                return self.resolve(value)
            tensor = self.tensor(value)
            return (
                self.constant(torch.zeros_like(tensor, dtype=tensor.dtype.to_real()))
                if is_number(tensor)
                else tensor
            )

        return map_values(replace, argument)

    def factor(self, argument: Any) -> Any:
        """Return a multiplicative argument: a reference to flow or weights, or a magnitude."""
        if not isinstance(argument, Value):
            return abs(argument)
        if self._is_variable(argument):
            return self.resolve(argument)
        if argument.number in self.input_dependent:
            return self.constant(torch.ones_like(self.tensor(argument), dtype=torch.float32))
        if self.is_random(argument):
            # Noise of mean zero multiplies a signal by positive and negative numbers alike, so it
            # counts as one.
            tensor = self.average(argument)
            return self.gain(tensor if bool(tensor.any()) else torch.ones_like(tensor), argument)
        return self.gain(self.tensor(argument), argument)

    def gain(self, tensor: Tensor, *of: Any) -> Value:
        """Add the magnitude of a tensor as a multiplicative constant.

        A gain that was computed from parameters and is zero throughout counts as ones, since the
        last gain of a residual block may start at zero, which would make every score in its branch
        zero.

        Args:
            tensor: Value of the gain.
            of: Values that the gain was computed from.
        """
        names = set().union(
            *(self._origin.get(value.number, ()) for value in of if isinstance(value, Value))
        )
        tensor = tensor.abs() if is_number(tensor) else tensor.float().abs()
        all_zero = bool(names) and not bool(tensor.any())
        value = self.constant(torch.ones_like(tensor) if all_zero else tensor)
        if names:
            self._gains.add(value.number)
        if all_zero:
            self._all_zero[value.number] = names
        return value

    def constant(self, tensor: Tensor) -> Value:
        """Add a tensor that is the same in every evaluation of the linear network."""
        number = len(self.graph.tensors) + len(self._constants)
        self._constants[number] = tensor
        return Value(number)

    def mark_input_dependent(self, value: Value, signals: Sequence[Value]) -> None:
        """Record that a value without flow (integers, booleans) depends on these signals."""
        self.input_dependent.add(value.number)
        self._made_from[value.number] = tuple(
            dict.fromkeys(self.resolve(signal) for signal in signals)
        )

    def made(self, number: int) -> Tensor:
        """Return a traced tensor or a constant of the linear network by its number."""
        return self._constants[number] if number in self._constants else self.graph.tensors[number]

    def _is_variable(self, value: Value) -> bool:
        return self.resolve(value).number in self.flow or self.resolve(value).number in self.weights
