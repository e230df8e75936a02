"""Builder: what each value of a recording is in the skeleton, and the steps that make it.

Three sorts of values matter. *Flow* depends on the input. *Weights* depend on prunable parameters alone: their magnitudes are given
anew in each pass. All else is known once the network has been recorded: where it is added it counts as zero, where it multiplies it
is a gain, its magnitude as recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from synflow_pl.flow.convolution import convolve
from synflow_pl.flow.recording import Operation, Recording, Value, is_number
from synflow_pl.flow.skeleton import Skeleton, StandIn, Step
from synflow_pl.flow.uniform import shorten

__all__ = ["Builder", "Rule"]


class Builder:
    """Turns recorded operations into steps.

    Args:
        recording: of the network.
        weights: names of the prunable parameters.
        parameters: names of all parameters; what else a recording names is a buffer.
        open_gates: let what gates a signal carry flow too, into what it gates; else it is a constant.

    Attributes:
        flow: numbers of the values that carry flow.
        weights: numbers of the values that depend on prunable parameters and on no input.
        touched: numbers of the values that depend on the input and carry no flow: indices, comparisons.
        level: by number, how much a value looks like a gate (:mod:`synflow_pl.flow.gates`).
        mixed: by number, how many products of two signals lie behind a value.
        gated: whether one signal has been found to gate another.
    """

    def __init__(self, recording: Recording, weights: Collection[str], parameters: Collection[str], open_gates: bool = False) -> None:
        self.recording = recording
        self.open_gates = open_gates
        self.steps: list[Step] = []
        self.flow = {value.number for value in recording.inputs if is_number(self.tensor(value))}
        self.touched = {value.number for value in recording.inputs} - self.flow
        self.weights = {number for number, name in recording.parameters.items() if name in weights}
        self.level: dict[int, int] = {}
        self.mixed: dict[int, int] = {}
        self.gated = False
        self._fed = {value.number: torch.ones_like(self.tensor(value)) for value in recording.inputs if value.number in self.flow}
        self._origin = {number: {name} for number, name in recording.parameters.items() if name in parameters}
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
        """Look at one operation. Returns whether it reads flow or, with no flow among what it reads, weights: then a rule is due.

        From here on :meth:`carries` says which of its arguments are meant.
        """
        values = operation.reads
        for carried in (self.flow, self.weights):
            if any(self.resolve(value).number in carried for value in values):
                self._carried = carried
                return True
        names = set().union(*(self._origin.get(value.number, ()) for value in values))
        if operation.name == "embedding" and operation.args[1].number in self.touched:
            # Where words come in, flow comes in.
            self.source(operation)
            return False
        for output in operation.outputs:
            if output is not None and any(value.number in self.touched for value in values):
                self.touched.add(output.number)
            elif output is not None and names:
                self._origin[output.number] = names
        return False

    def carries(self, argument: Any) -> bool:
        """Whether an argument of the operation at hand carries what it passes on: flow or, where it reads none, weights."""
        return isinstance(argument, Value) and self.resolve(argument).number in self._carried

    @property
    def in_weights(self) -> bool:
        """Whether the operation at hand works on weights alone."""
        return self._carried is self.weights

    # -- what an argument becomes

    def operand(self, argument: Any) -> Any:
        """An argument as the skeleton's step takes it: flow and weights by reference, indices as they were recorded.

        Any other number that a network mixes in (a class token beside the patches, say) is an additive term: zero.
        """

        def leaf(item: Any) -> Any:
            if not isinstance(item, Value):
                return item
            if self._lives(item):
                return self.resolve(item)
            tensor = self.tensor(item)
            return self.constant(torch.zeros_like(tensor)) if is_number(tensor) else tensor

        return tree_map(leaf, argument, is_leaf=lambda item: isinstance(item, Value))

    def factor(self, argument: Any) -> Any:
        """An argument that multiplies: flow and weights by reference, all else by its magnitude."""
        if not isinstance(argument, Value):
            return abs(argument)
        if self._lives(argument):
            return self.resolve(argument)
        if argument.number in self.touched:
            return self.constant(torch.ones_like(self.tensor(argument), dtype=torch.float32))
        return self.gain(self.tensor(argument), argument)

    def gain(self, tensor: Tensor, *of: Any) -> Value:
        """A multiplicative constant, made of the values ``of``: its magnitude, or ones if it is made of parameters and zero throughout.

        (A residual block's last gain that starts at zero would silence every score in its branch.)
        """
        names = set().union(*(self._origin.get(value.number, ()) for value in of if isinstance(value, Value)))
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
        self, operation: Operation, function: Callable[..., Tensor], *args: Any, contraction: bool = False, output: int = 0
    ) -> None:
        """One of the operation's outputs, the first, becomes ``function(*args)``."""
        value = operation.outputs[output]
        assert value is not None
        self.steps.append(Step(operation.name, function, args, {}, (value.number,), contraction))
        self._carried.add(value.number)

    def replay(self, operation: Operation, function: Callable[..., Any] | None = None) -> None:
        """The operation stays as it is."""
        kwargs = {key: self.operand(item) for key, item in operation.kwargs.items() if key != "dtype"}
        outputs = tuple(value.number if value is not None else -1 for value in operation.outputs)
        self.steps.append(Step(operation.name, function or operation.target, self.operand(operation.args), kwargs, outputs, False))
        for value in operation.outputs:
            if value is not None:
                (self._carried if is_number(self.tensor(value)) else self.touched).add(value.number)

    def same(self, operation: Operation, argument: Any) -> None:
        """The operation does nothing in the skeleton but, where shapes differ, spread its argument out."""
        output = operation.outputs[0]
        assert output is not None
        shape = self.tensor(output).shape
        # A skeleton for paths gives each value that is computed from a weight its own number, by which its zeros are looked up.
        if self.tensor(argument).shape != shape or (self.open_gates and self.in_weights and output.number != argument.number):
            return self.step(operation, torch.broadcast_to, self.resolve(argument), shape)
        if output.number != (number := self.resolve(argument).number):  # else it gave back what it was given
            self._alias[output.number] = number

    def source(self, operation: Operation) -> None:
        """The operation's output is where flow comes in: ones."""
        output = operation.outputs[0]
        assert output is not None
        self._fed[output.number] = torch.ones_like(self.tensor(output))
        self.flow.add(output.number)

    def drop(self, operation: Operation) -> None:
        """The operation carries nothing on."""
        if not self.in_weights:
            self.touched.update(output.number for output in operation.outputs if output is not None)

    def stand_in(self, operation: Operation) -> None:
        """For an operation without a rule: the identity where shapes agree, else plain averaging."""
        signals = [value for value in operation.reads if self.carries(value)]
        for index, output in enumerate(operation.outputs):
            if output is None:
                continue
            if not is_number(self.tensor(output)):
                self.touched.add(output.number)
                continue
            shape = self.tensor(output).shape
            signal = next((value for value in signals if self.tensor(value).shape == shape), signals[0])

            def truth(flow: Tensor, signal: Value = signal, index: int = index) -> Tensor:
                def leaf(item: Any) -> Any:
                    if not isinstance(item, Value):
                        return item
                    if item == signal:
                        return flow
                    recorded = self.tensor(item)
                    return recorded.to(flow.dtype) if recorded.is_floating_point() else recorded

                args, kwargs = tree_map(leaf, (operation.args, operation.kwargs), is_leaf=lambda item: isinstance(item, Value))
                result = operation.target(*args, **kwargs)
                return result if isinstance(result, Tensor) else result[index]

            self.step(operation, StandIn(str(operation.target), shape, truth), self.resolve(signal), output=index)

    def finish(self, name: str) -> Skeleton:
        """The skeleton.

        Raises:
            ValueError: if no input reaches an output of the network ``name``.
        """
        outputs = [self.resolve(value).number for value in self.recording.outputs]
        reached = tuple(number for number in outputs if number in self.flow)
        if not reached:
            raise ValueError(f"no output of {name} depends on its input, so nothing can flow; check forward()")
        names = {number: name for number, name in self.recording.parameters.items() if number in self.weights}
        unused = len(self.recording.tensors) + len(self._constants)
        steps, fed, reached = shorten(self.steps, self._fed, reached, lambda number: self._made(number).shape, unused)
        return Skeleton(
            steps=_name_weights(steps, names),
            inputs=fed,
            parameters={number: self.recording.tensors[number] for number in names},
            names=names,
            constants=self._constants,
            gains=self._gains,
            silent=self._silent,
            outputs=reached,
            flow=self.flow.union(number for step in steps if step.outputs[0] >= unused for number in step.outputs),
            gated=self.gated,
        )

    def _made(self, number: int) -> Tensor:
        """A recorded tensor, or one that belongs to the structure."""
        return self._constants[number] if number in self._constants else self.recording.tensors[number]

    def _lives(self, value: Value) -> bool:
        return self.resolve(value).number in self.flow or self.resolve(value).number in self.weights


Rule = Callable[[Builder, Operation], None]


def _name_weights(steps: list[Step], names: dict[int, str]) -> list[Step]:
    """Mark the steps whose weight is a plain matrix or kernel that nothing else reads."""
    readers = Counter(number for step in steps for number in step.operands)
    made_by = {step.outputs[0]: step for step in steps}
    named = []
    for step in steps:
        name = None
        if step.contraction and isinstance(step.args[1], Value) and readers[step.args[1].number] == 1:
            number = step.args[1].number
            if step.function is convolve:
                transposed, groups = step.args[6], step.args[8]
                name = names.get(number) if groups == 1 and not transposed else None
            elif number in made_by and made_by[number].name == "t":
                source = made_by[number].operands[0]
                name = names.get(source) if readers[source] == 1 else None
        named.append(replace(step, weight=name))
    return named
