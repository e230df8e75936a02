"""Builder: translates a traced graph into the nodes of the positive linear network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from synflow_pl.flow.deduplicate_positions import deduplicate_positions
from synflow_pl.flow.fallback import Fallback
from synflow_pl.flow.linear_network import LinearNetwork
from synflow_pl.flow.node import Node
from synflow_pl.flow.node_analysis import name_weights
from synflow_pl.flow.values import TracedValues
from synflow_pl.graph import operators
from synflow_pl.graph.outputs import Opaque
from synflow_pl.graph.trace import Graph, Operation, Value, is_number

__all__ = ["UNIT", "Builder", "Rule"]

# The gate level of a bounded non-negative value (see synflow_pl.flow.gates).
UNIT = 3
# Operations that read rows of a table.
_LOOKUPS = operators.EMBEDDINGS | operators.INDEXING


class Builder(TracedValues):
    """Translates the operations of a graph into nodes of the positive linear network.

    Args:
        graph: Graph of the network, made by :func:`synflow_pl.flow.trace`.
        weights: Names of the prunable parameters.
        parameters: Names of all parameters; every other name in the graph is a buffer.
        open_gates: Whether the signal that gates another one carries flow into it; by default the
            gate is a constant.

    Attributes:
        level: How much each value looks like a gate, by number (see :mod:`synflow_pl.flow.gates`).
        num_products: Number of products of two signals that each value was computed through, by
            number.
        gated: Whether one signal gates another somewhere in the network.
        difference_from: Signal ``x`` by the number of each value ``f(x) - x`` with a pointwise
            ``f``.
    """

    uniform: bool = True
    """True if flow starts as ones and passes all positions of a signal alike, except at borders."""

    def __init__(
        self,
        graph: Graph,
        weights: Collection[str],
        parameters: Collection[str],
        open_gates: bool = False,
    ) -> None:
        super().__init__(graph, weights, parameters)
        self.open_gates = open_gates
        self.nodes: list[Node] = []
        self.level: dict[int, int] = {}
        self.num_products: dict[int, int] = {}
        self.gated = False
        self.difference_from: dict[int, Value] = {}
        self._sources = {
            value.number: torch.ones_like(self.tensor(value).abs())
            for value in graph.inputs
            if value.number in self.flow
        }

    def visit(self, operation: Operation) -> bool:
        """Begin with an operation and return whether it needs a rule.

        An operation needs a rule if it reads a value that carries flow or, if it reads none of
        these, a value in ``weights``. From then on :meth:`carries` refers to this set.
        """
        values = operation.reads
        input_dependent = operation.name not in operators.CREATED and any(
            value.number in self.input_dependent for value in values
        )
        for carried in (self.flow, self.weights):
            if carried is self.weights and input_dependent and operation.name in _LOOKUPS:
                continue  # the table is also the weight of a layer
            if any(self.resolve(value).number in carried for value in values):
                self._carried = carried
                return True
        if input_dependent:
            self.start_flow(
                operation, [value for value in values if value.number in self.input_dependent]
            )
            return False
        random = any(self.is_random(value) for value in values)
        if random and operation.name == "_local_scalar_dense":
            raise ValueError(
                "forward() decides by a random number, in eval mode too, so each pass may be"
                " another network; take the random number out of eval mode (if self.training: ...)"
            )
        names = set().union(*(self._origin.get(value.number, ()) for value in values))
        for output in operation.results:
            if random:
                self._random[output.number] = operation
            if names:
                self._origin[output.number] = names
        return False

    def add_node(
        self,
        operation: Operation,
        function: Callable[..., Tensor],
        *args: Any,
        contraction: bool = False,
        output: int = 0,
    ) -> None:
        """Add a node that computes one output of an operation by ``function(*args)``."""
        value = operation.outputs[output]
        assert value is not None
        self.nodes.append(Node(operation.name, function, args, {}, (value.number,), contraction))
        self._carried.add(value.number)

    def add_operation(
        self, operation: Operation, function: Callable[..., Any] | None = None
    ) -> None:
        """Add a node that calls the operation itself, or ``function`` in its place."""
        kwargs = {
            key: self.operand(item) for key, item in operation.kwargs.items() if key != "dtype"
        }
        outputs = tuple(value.number if value is not None else -1 for value in operation.outputs)
        self.nodes.append(
            Node(
                operation.name,
                function or operation.target,
                self.operand(operation.args),
                kwargs,
                outputs,
                False,
            )
        )
        for value in operation.results:
            if is_number(self.tensor(value)):
                self._carried.add(value.number)
            else:
                self.mark_input_dependent(
                    value, [signal for signal in operation.reads if self.carries(signal)]
                )

    def add_identity(self, operation: Operation, argument: Any) -> None:
        """Let the output of an operation be one of its arguments, broadcast to its shape."""
        output = operation.outputs[0]
        assert output is not None
        shape = self.tensor(output).shape
        # With open gates, each value computed from a weight keeps its own number, by which
        # `Connectivity` looks up its zeros.
        if self.tensor(argument).shape != shape or (
            self.open_gates and self.in_weights and output.number != argument.number
        ):
            return self.add_node(operation, torch.broadcast_to, self.resolve(argument), shape)
        number = self.resolve(argument).number
        if output.number != number:  # they are equal if the operation returns its argument
            self._alias[output.number] = number

    def start_flow(self, operation: Operation, input_dependent: Sequence[Value]) -> None:
        """Translate an operation that reads input-dependent values without flow.

        Outputs that are integers or booleans are input-dependent as well. At floating-point
        outputs, flow starts as ones if the values were computed from the input itself. If they were
        computed from signals, the flow of the signals continues, as through a pointwise function (a
        step function, rounding), or as its mean where shapes differ.
        """
        signals = dict.fromkeys(
            signal for value in input_dependent for signal in self._made_from.get(value.number, ())
        )
        truths = any(self.tensor(value).dtype == torch.bool for value in input_dependent)
        for index, output in enumerate(operation.outputs):
            if output is None:
                continue
            if not is_number(self.tensor(output)):
                self.mark_input_dependent(output, list(signals))
            elif signals:
                self._carried = (
                    self.flow
                    if any(signal.number in self.flow for signal in signals)
                    else self.weights
                )
                shape = self.tensor(output).shape
                self.add_node(
                    operation,
                    _spread,
                    shape,
                    *(signal for signal in signals if signal.number in self._carried),
                    output=index,
                )
            else:
                self._sources[output.number] = torch.ones_like(self.tensor(output).abs())
                self.flow.add(output.number)
            self.level[output.number] = UNIT if truths else 0

    def add_fallback(self, operation: Operation) -> None:
        """Translate an operation without a rule: the identity if shapes agree, else the mean."""
        signals = [value for value in operation.reads if self.carries(value)]
        for index, output in enumerate(operation.outputs):
            if output is None:
                continue
            if not is_number(self.tensor(output)):
                self.mark_input_dependent(output, signals)
                continue
            shape = self.tensor(output).shape
            signal = next(
                (value for value in signals if self.tensor(value).shape == shape), signals[0]
            )

            def exact(flow: Tensor, signal: Value = signal, index: int = index) -> Tensor:
                def tensor(read: Value) -> Tensor:
                    if read == signal:
                        return flow
                    recorded = self.tensor(read)
                    return recorded.to(flow.dtype) if recorded.is_floating_point() else recorded

                args, kwargs = operation.arguments(tensor)
                result = operation.target(*args, **kwargs)
                return result if isinstance(result, Tensor) else result[index]

            self.add_node(
                operation,
                Fallback(str(operation.target), shape, exact),
                self.resolve(signal),
                output=index,
            )

    def finish(self, name: str) -> LinearNetwork:
        """Return the linear network.

        Args:
            name: Class name of the network, for error messages.

        Raises:
            ValueError: If no output of the network depends on its input.
            Opaque: If that may be because a part of its output cannot be searched for tensors.
        """
        outputs = [self.resolve(value).number for value in self.graph.outputs]
        flowing = tuple(number for number in outputs if number in self.flow)
        if not flowing and self.graph.opaque:
            raise Opaque(self.graph.opaque, "pruning")
        if not flowing:
            raise ValueError(
                f"no output of {name} depends on its input, so nothing can flow; check forward()"
            )
        # An output that no weight acts on (the returned input, say) would be a path that pruning
        # can never cut.
        weighted = set(self.weights)
        for node in self.nodes:
            if not weighted.isdisjoint(node.operands):
                weighted.update(node.outputs)
        reached = tuple(number for number in flowing if number in weighted) or flowing
        # Integer and boolean outputs are usually computed from other outputs and often have more
        # entries, so only floating-point outputs count where there are some.
        decisions = {self.resolve(Value(number)).number for number in self.graph.decisions}
        trained = tuple(number for number in reached if number not in decisions)
        partial = bool(trained) and len(trained) < len(reached) and not self.open_gates
        reached = trained if partial else reached
        names = {
            number: name for number, name in self.graph.parameters.items() if number in self.weights
        }
        unused = len(self.graph.tensors) + len(self._constants)
        shapes = tuple(self.made(number).shape for number in reached)
        nodes, sources = self.nodes, self._sources
        if self.uniform:
            nodes, sources, reached = deduplicate_positions(
                nodes, sources, reached, lambda number: self.made(number).shape, unused
            )
        linear_network = LinearNetwork(
            nodes=name_weights(nodes, names),
            inputs=sources,
            parameters={number: self.graph.tensors[number] for number in names},
            names=names,
            constants=self._constants,
            gains=self._gains,
            all_zero=self._all_zero,
            outputs=reached,
            flow=self.flow.union(
                number for node in nodes if node.outputs[0] >= unused for number in node.outputs
            ),
            gated=self.gated,
        )
        linear_network.partial = partial
        linear_network.output_shapes = shapes
        return linear_network


def _spread(shape: Sequence[int], *signals: Tensor) -> Tensor:
    """Return the sum of signals in this shape, each reshaped, broadcast or averaged to fit."""
    total: Tensor | None = None
    for signal in signals:
        if signal.numel() == prod(shape):
            part = signal.reshape(shape)
        elif signal.dim() <= len(shape) and all(
            size in (1, other) for size, other in zip(signal.shape[::-1], shape[::-1], strict=False)
        ):
            part = signal.expand(shape)
        else:
            part = signal.mean().expand(shape)
        total = part if total is None else total + part
    assert total is not None
    return total


Rule = Callable[[Builder, Operation], None]
