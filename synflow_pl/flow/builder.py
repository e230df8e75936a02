"""Builder: what each value of a recording is in the skeleton, and the steps that make it.

Three sorts of values matter. *Flow* depends on the input. *Weights* depend on prunable parameters
    alone: their magnitudes are given
anew in each pass. All else is known once the network has been recorded: where it is added it counts
as zero, where it multiplies it is a gain, its magnitude as recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from synflow_pl.flow.convolution import convolve
from synflow_pl.flow.deduplicate_positions import deduplicate_positions
from synflow_pl.flow.linear_network import Fallback, LinearNetwork, Node
from synflow_pl.graph.noise import average
from synflow_pl.graph.outputs import Opaque
from synflow_pl.graph.trace import Graph, Operation, Value, is_number

__all__ = ["CREATES", "UNIT", "Builder", "Rule"]

# How much a value that is either zero or one looks like a gate (:mod:`synflow_pl.flow.gates`).
UNIT = 3
# They look at their argument's shape alone.
CREATES = frozenset(
    """
    zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros new_ones new_full new_empty new_empty_strided
    zero fill uniform normal_functional exponential geometric cauchy log_normal random
    """.split()
)
# They read rows of a table.
_LOOKUPS = frozenset(
    "embedding _embedding_bag _embedding_bag_forward_only index index_select gather take".split()
)


class Builder:
    """Turns recorded operations into steps.

    Args:
        recording: of the network.
        weights: names of the prunable parameters.
        parameters: names of all parameters; what else a recording names is a buffer.
        open_gates: let what gates a signal carry flow too, into what it gates; else it is a
            constant.

    Attributes:
        flow: numbers of the values that carry flow.
        weights: numbers of the values that depend on prunable parameters and on no input.
        touched: numbers of the values that depend on the input and carry no flow: whole numbers,
            indices, comparisons. Where they become floating point, flow comes in, or passes on if
            they were made from flow.
        level: by number, how much a value looks like a gate (:mod:`synflow_pl.flow.gates`).
        mixed: by number, how many products of two signals lie behind a value.
        gated: whether one signal has been found to gate another.
        errors: by the number of a difference between a pointwise function of a signal and the
            signal itself, the signal.
    """

    def __init__(
        self,
        recording: Graph,
        weights: Collection[str],
        parameters: Collection[str],
        open_gates: bool = False,
    ) -> None:
        self.recording = recording
        self.open_gates = open_gates
        self.steps: list[Node] = []
        self.flow = {value.number for value in recording.inputs if is_number(self.tensor(value))}
        self.touched = {value.number for value in recording.inputs} - self.flow
        self.weights = {number for number, name in recording.parameters.items() if name in weights}
        self.level: dict[int, int] = {}
        self.mixed: dict[int, int] = {}
        self.gated = False
        self.errors: dict[int, Value] = {}
        self._fed = {
            value.number: torch.ones_like(self.tensor(value).abs())
            for value in recording.inputs
            if value.number in self.flow
        }
        # By the number of a touched value, the signals that it was made from.
        self._behind: dict[int, tuple[Value, ...]] = {}
        # By number, the operations that make values of random numbers and constants.
        self._random: dict[int, Operation] = {}
        self._origin = {
            number: {name} for number, name in recording.parameters.items() if name in parameters
        }
        self._constants: dict[int, Tensor] = {}
        self._gains: set[int] = set()
        self._silent: dict[int, set[str]] = {}
        self._alias: dict[int, int] = {}
        self._carried = self.flow

    # -- what a value is

    def tensor(self, value: Value) -> Tensor:
        """The tensor as it was recorded."""
        return self.recording.tensors[value.number]

    def resolve(self, value: Value) -> Value:
        """The value that this one is the same as, in the skeleton."""
        number = value.number
        while number in self._alias:
            number = self._alias[number]
        return Value(number)

    def turn_to(self, operation: Operation) -> bool:
        """Look at one operation. Returns whether it reads flow or, with no flow among what it
        reads, weights: then a rule is due.

        From here on :meth:`carries` says which of its arguments are meant.
        """
        values = operation.reads
        touched = operation.name not in CREATES and any(
            value.number in self.touched for value in values
        )
        for carried in (self.flow, self.weights):
            if carried is self.weights and touched and operation.name in _LOOKUPS:
                continue  # a table that is a layer's weight too
            if any(self.resolve(value).number in carried for value in values):
                self._carried = carried
                return True
        if touched:
            self.enter(operation, [value for value in values if value.number in self.touched])
            return False
        random = any(self.is_random(value) for value in values)
        if random and operation.name == "_local_scalar_dense":
            raise ValueError(
                "forward() decides by a random number, in eval mode too, so each pass may be another network; take the random number"
                " out of eval mode (if self.training: ...)"
            )
        names = set().union(*(self._origin.get(value.number, ()) for value in values))
        for output in operation.outputs:
            if output is not None and random:
                self._random[output.number] = operation
            if output is not None and names:
                self._origin[output.number] = names
        return False

    def is_random(self, value: Value) -> bool:
        """Return whether a value is made of random numbers and carries no flow."""
        return value.number in self._random or value.number in self.recording.noise

    def average(self, value: Value) -> Tensor:
        """Return the mean of a value that :meth:`is_random`, in floating point."""
        return average(value.number, self._random, self.recording.noise, self.recording.tensors)

    def carries(self, argument: Any) -> bool:
        """Whether an argument of the operation at hand carries what it passes on: flow or, where it
        reads none, weights.
        """
        return isinstance(argument, Value) and self.resolve(argument).number in self._carried

    @property
    def in_weights(self) -> bool:
        """Whether the operation at hand works on weights alone."""
        return self._carried is self.weights

    # -- what an argument becomes

    def operand(self, argument: Any) -> Any:
        """An argument as the skeleton's step takes it: flow and weights by reference, indices as
        they were recorded.

        Any other number that a network mixes in (a class token beside the patches, say) is an
        additive term: zero.
        """

        def leaf(item: Any) -> Any:
            if not isinstance(item, Value):
                return item
            if self._lives(item):
                return self.resolve(item)
            tensor = self.tensor(item)
            return (
                self.constant(torch.zeros_like(tensor, dtype=tensor.dtype.to_real()))
                if is_number(tensor)
                else tensor
            )

        return tree_map(leaf, argument, is_leaf=lambda item: isinstance(item, Value))

    def factor(self, argument: Any) -> Any:
        """An argument that multiplies: flow and weights by reference, all else by its magnitude."""
        if not isinstance(argument, Value):
            return abs(argument)
        if self._lives(argument):
            return self.resolve(argument)
        if argument.number in self.touched:
            return self.constant(torch.ones_like(self.tensor(argument), dtype=torch.float32))
        if self.is_random(argument):
            # Noise of mean zero scales a signal up or down as often.
            tensor = self.average(argument)
            return self.gain(tensor if bool(tensor.any()) else torch.ones_like(tensor), argument)
        return self.gain(self.tensor(argument), argument)

    def gain(self, tensor: Tensor, *of: Any) -> Value:
        """A multiplicative constant, made of the values ``of``: its magnitude, or ones if it is
        made of parameters and zero throughout.

        (A residual block's last gain that starts at zero would silence every score in its branch.)
        """
        names = set().union(
            *(self._origin.get(value.number, ()) for value in of if isinstance(value, Value))
        )
        tensor = tensor.abs() if is_number(tensor) else tensor.float().abs()
        silent = bool(names) and not bool(tensor.any())
        value = self.constant(torch.ones_like(tensor) if silent else tensor)
        if names:
            self._gains.add(value.number)
        if silent:
            self._silent[value.number] = names
        return value

    def constant(self, tensor: Tensor) -> Value:
        """A tensor that belongs to the structure: the same in every pass."""
        number = len(self.recording.tensors) + len(self._constants)
        self._constants[number] = tensor
        return Value(number)

    # -- what an operation becomes

    def step(
        self,
        operation: Operation,
        function: Callable[..., Tensor],
        *args: Any,
        contraction: bool = False,
        output: int = 0,
    ) -> None:
        """One of the operation's outputs, the first, becomes ``function(*args)``."""
        value = operation.outputs[output]
        assert value is not None
        self.steps.append(Node(operation.name, function, args, {}, (value.number,), contraction))
        self._carried.add(value.number)

    def replay(self, operation: Operation, function: Callable[..., Any] | None = None) -> None:
        """The operation stays as it is."""
        kwargs = {
            key: self.operand(item) for key, item in operation.kwargs.items() if key != "dtype"
        }
        outputs = tuple(value.number if value is not None else -1 for value in operation.outputs)
        self.steps.append(
            Node(
                operation.name,
                function or operation.target,
                self.operand(operation.args),
                kwargs,
                outputs,
                False,
            )
        )
        for value in operation.outputs:
            if value is not None and is_number(self.tensor(value)):
                self._carried.add(value.number)
            elif value is not None:
                self.touch(value, [signal for signal in operation.reads if self.carries(signal)])

    def same(self, operation: Operation, argument: Any) -> None:
        """The operation does nothing in the skeleton but, where shapes differ, spread its argument
        out.
        """
        output = operation.outputs[0]
        assert output is not None
        shape = self.tensor(output).shape
        # A skeleton for paths gives each value that is computed from a weight its own number, by
        # which its zeros are looked up.
        if self.tensor(argument).shape != shape or (
            self.open_gates and self.in_weights and output.number != argument.number
        ):
            return self.step(operation, torch.broadcast_to, self.resolve(argument), shape)
        if output.number != (
            number := self.resolve(argument).number
        ):  # else it gave back what it was given
            self._alias[output.number] = number

    def touch(self, value: Value, signals: Sequence[Value]) -> None:
        """A value is whole numbers, indices or truth values made from these signals."""
        self.touched.add(value.number)
        self._behind[value.number] = tuple(
            dict.fromkeys(self.resolve(signal) for signal in signals)
        )

    def enter(self, operation: Operation, touched: Sequence[Value]) -> None:
        """The operation reads touched values: its outputs are touched too or, in floating point,
        carry flow.

        What was made from the input itself is where flow comes in, ones; what was made from signals
        passes their flow on, as a pointwise function does (a step, a rounding) or, where shapes
        differ, plain averaging.
        """
        behind = dict.fromkeys(
            signal for value in touched for signal in self._behind.get(value.number, ())
        )
        truths = any(self.tensor(value).dtype == torch.bool for value in touched)
        for index, output in enumerate(operation.outputs):
            if output is None:
                continue
            if not is_number(self.tensor(output)):
                self.touch(output, list(behind))
            elif behind:
                self._carried = (
                    self.flow
                    if any(signal.number in self.flow for signal in behind)
                    else self.weights
                )
                shape = self.tensor(output).shape
                self.step(
                    operation,
                    _spread,
                    shape,
                    *(signal for signal in behind if signal.number in self._carried),
                    output=index,
                )
            else:
                self._fed[output.number] = torch.ones_like(self.tensor(output).abs())
                self.flow.add(output.number)
            self.level[output.number] = UNIT if truths else 0

    def stand_in(self, operation: Operation) -> None:
        """For an operation without a rule: the identity where shapes agree, else plain
        averaging.
        """
        signals = [value for value in operation.reads if self.carries(value)]
        for index, output in enumerate(operation.outputs):
            if output is None:
                continue
            if not is_number(self.tensor(output)):
                self.touch(output, signals)
                continue
            shape = self.tensor(output).shape
            signal = next(
                (value for value in signals if self.tensor(value).shape == shape), signals[0]
            )

            def truth(flow: Tensor, signal: Value = signal, index: int = index) -> Tensor:
                def leaf(item: Any) -> Any:
                    if not isinstance(item, Value):
                        return item
                    if item == signal:
                        return flow
                    recorded = self.tensor(item)
                    return recorded.to(flow.dtype) if recorded.is_floating_point() else recorded

                args, kwargs = tree_map(
                    leaf,
                    (operation.args, operation.kwargs),
                    is_leaf=lambda item: isinstance(item, Value),
                )
                result = operation.target(*args, **kwargs)
                return result if isinstance(result, Tensor) else result[index]

            self.step(
                operation,
                Fallback(str(operation.target), shape, truth),
                self.resolve(signal),
                output=index,
            )

    def finish(self, name: str) -> LinearNetwork:
        """The skeleton.

        Raises:
            ValueError: if no input reaches an output of the network ``name``.
            Opaque: If that may be because a part of its output cannot be looked into.
        """
        outputs = [self.resolve(value).number for value in self.recording.outputs]
        flowing = tuple(number for number in outputs if number in self.flow)
        if not flowing and self.recording.opaque:
            raise Opaque(self.recording.opaque, "pruning")
        if not flowing:
            raise ValueError(
                f"no output of {name} depends on its input, so nothing can flow; check forward()"
            )
        weighted = set(
            self.weights
        )  # what no weight has acted on (the input itself, returned) would be a path that nothing can cut
        for step in self.steps:
            if not weighted.isdisjoint(step.operands):
                weighted.update(step.outputs)
        reached = tuple(number for number in flowing if number in weighted) or flowing
        # Decisions are made of other outputs as a rule, and often of more entries: what is trained
        # decides what is kept.
        decisions = {self.resolve(Value(number)).number for number in self.recording.decisions}
        trained = tuple(number for number in reached if number not in decisions)
        partial = bool(trained) and len(trained) < len(reached) and not self.open_gates
        reached = trained if partial else reached
        names = {
            number: name
            for number, name in self.recording.parameters.items()
            if number in self.weights
        }
        unused = len(self.recording.tensors) + len(self._constants)
        steps, fed, reached = deduplicate_positions(
            self.steps, self._fed, reached, lambda number: self._made(number).shape, unused
        )
        skeleton = LinearNetwork(
            steps=_name_weights(steps, names),
            inputs=fed,
            parameters={number: self.recording.tensors[number] for number in names},
            names=names,
            constants=self._constants,
            gains=self._gains,
            silent=self._silent,
            outputs=reached,
            flow=self.flow.union(
                number for step in steps if step.outputs[0] >= unused for number in step.outputs
            ),
            gated=self.gated,
        )
        skeleton.partial = partial
        return skeleton

    def _made(self, number: int) -> Tensor:
        """A recorded tensor, or one that belongs to the structure."""
        return (
            self._constants[number] if number in self._constants else self.recording.tensors[number]
        )

    def _lives(self, value: Value) -> bool:
        return self.resolve(value).number in self.flow or self.resolve(value).number in self.weights


def _spread(shape: Sequence[int], *signals: Tensor) -> Tensor:
    """The sum of signals in this shape: each as it is, broadcast or, where that does not go, its
    mean.
    """
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


def _name_weights(steps: list[Node], names: dict[int, str]) -> list[Node]:
    """Mark the steps whose weight is a plain matrix or kernel that nothing else reads."""
    readers = Counter(number for step in steps for number in step.operands)
    made_by = {step.outputs[0]: step for step in steps}
    named = []
    for step in steps:
        name = None
        if (
            step.contraction
            and isinstance(step.args[1], Value)
            and readers[step.args[1].number] == 1
        ):
            number = step.args[1].number
            if step.function is convolve:
                transposed, groups = step.args[6], step.args[8]
                name = names.get(number) if groups == 1 and not transposed else None
            elif number in made_by and made_by[number].name == "t":
                source = made_by[number].operands[0]
                name = names.get(source) if readers[source] == 1 else None
        named.append(replace(step, weight=name))
    return named
