"""Linearise: the positive linear skeleton of a network, the thing that synaptic flow flows through.

Tanaka et al. 2020 score a network by R = 1^T f(1) with every weight replaced by its magnitude. What is meant is a *linear* network:
|w| for every weight, and of everything else only what lets flow pass.

- A pointwise nonlinearity is the identity. (On a ReLU network with positive weights that is what it is; ReLU6 would saturate.)
- A normalisation is its |gain|, for BatchNorm over its running deviation; no mean is taken off.
- Additive terms (biases, shifts, tables) are zero; they would starve deep layers of flow.
- Pooling, reshaping, concatenating and adding stay what they are.

Each rule below turns one recorded operation into one step of the skeleton. An operation without a rule is an error that names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from synflow_pl.flow.recording import Operation, Recording, Value, record
from synflow_pl.flow.skeleton import Skeleton, Step, magnitude

__all__ = ["UnknownOperation", "linearise"]

aten = torch.ops.aten


class UnknownOperation(ValueError):
    """The skeleton has no rule for an operation that carries flow."""


# The identity on flow: pointwise nonlinearities, and what only copies or changes the kind of number.
_IDENTITY = frozenset(
    """
    relu leaky_relu rrelu_with_noise elu celu gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid softplus relu6
    clamp clamp_min clamp_max _prelu_kernel native_dropout dropout clone alias detach _to_copy contiguous lift_fresh abs
    """.split()
)
# Already linear with non-negative coefficients: replayed as they are.
_LINEAR = frozenset(
    """
    view _unsafe_view reshape permute transpose t unsqueeze squeeze expand repeat flip roll slice select narrow split
    split_with_sizes unbind cat stack unfold im2col pixel_shuffle pixel_unshuffle channel_shuffle mean sum cumsum
    max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d amax max_pool1d avg_pool1d
    avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_linear1d upsample_trilinear3d reflection_pad1d
    reflection_pad2d replication_pad1d replication_pad2d index index_select diagonal tril triu movedim slice_scatter
    select_scatter as_strided_copy view_copy _reshape_alias
    """.split()
)
_VIEW = frozenset({"view", "_unsafe_view", "_reshape_alias", "view_copy"})
# The steps that weights act in; flow is measured, and kept in range, between them.
_CONTRACTION = frozenset({"convolution", "mm", "addmm", "bmm", "baddbmm", "addmv", "mv"})


def linearise(network: nn.Module, inputs: tuple[Tensor, ...], recording: Recording | None = None) -> Skeleton:
    """The positive linear skeleton of ``network`` at the shapes of ``inputs``.

    Args:
        network: any module; read once, left as it was found. Its weights are not kept: the skeleton asks for them in each pass.
        inputs: one tensor per input of the network, batch dimension included, as :func:`example_of` gives them.
        recording: the network's recording, where one is at hand.

    Raises:
        UnknownOperation: naming the operation, where flow meets one that has no rule.
        ValueError: if no input reaches an output.
    """
    recording = record(network, inputs) if recording is None else recording
    weights = {name for name, parameter in network.named_parameters() if parameter.is_floating_point() and parameter.dim() > 1}
    builder = _Builder(recording, weights)
    for operation in recording.operations:
        builder.add(operation)
    return builder.finish(type(network).__name__, inputs)


class _Builder:
    """Follows flow (values that depend on the input) and weights (values that depend on a weight alone) through a recording."""

    def __init__(self, recording: Recording, weights: set[str]) -> None:
        self.recording = recording
        self.steps: list[Step] = []
        self.flow = {value.number for value in recording.inputs if recording.tensors[value.number].is_floating_point()}
        self.weights = {number for number, name in recording.parameters.items() if name in weights}
        self.gains: dict[int, Tensor] = {}
        self._alias: dict[int, int] = {}

    # -- what a value is

    def resolve(self, value: Value) -> Value:
        """The value that this one is the same as, in the skeleton."""
        number = value.number
        while number in self._alias:
            number = self._alias[number]
        return Value(number)

    def carries(self, argument: Any) -> bool:
        """Whether a tensor argument carries flow."""
        return isinstance(argument, Value) and self.resolve(argument).number in self.flow

    def tensor(self, value: Value) -> Tensor:
        return self.recording.tensors[value.number]

    def operand(self, argument: Any) -> Any:
        """An argument as the skeleton's step takes it: flow and weights by reference, indices as they were recorded.

        Any other number that a network mixes in (a class token beside the patches, say) is an additive term: zero.
        """

        def leaf(item: Any) -> Any:
            if not isinstance(item, Value):
                return item
            item = self.resolve(item)
            if item.number in self.flow or item.number in self.weights:
                return item
            tensor = self.tensor(item)
            return torch.zeros_like(tensor) if tensor.is_floating_point() else tensor

        return tree_map(leaf, argument, is_leaf=lambda item: isinstance(item, Value))

    def gain(self, tensor: Tensor, shape: tuple[int, ...] | None = None) -> Value:
        """A multiplicative constant, as a step's operand."""
        number = len(self.recording.tensors) + len(self.gains)
        self.gains[number] = tensor if shape is None else tensor.reshape(shape)
        return Value(number)

    # -- what an operation becomes

    def step(self, operation: Operation, function: Callable[..., Tensor], *args: Any, contraction: bool = False) -> None:
        """The operation becomes ``function(*args)``, which makes its first output."""
        output = operation.outputs[0]
        assert output is not None
        self.steps.append(Step(operation.name, function, args, {}, (output.number,), contraction))
        self.flow.add(output.number)

    def replay(self, operation: Operation) -> tuple[int, ...]:
        """The operation stays as it is. Returns the numbers of its floating-point outputs."""
        # What was contiguous in the network need not be in its skeleton, where a view may follow another step.
        function = torch.reshape if operation.name in _VIEW else operation.target
        args, kwargs = self.operand(operation.args), self.operand(operation.kwargs)
        outputs = tuple(value.number if value is not None else -1 for value in operation.outputs)
        self.steps.append(Step(operation.name, function, args, kwargs, outputs, contraction=False))
        return tuple(value.number for value in operation.outputs if value is not None and self.tensor(value).is_floating_point())

    def same(self, operation: Operation, argument: Any) -> None:
        """The operation does nothing in the skeleton."""
        output = operation.outputs[0]
        assert output is not None
        self._alias[output.number] = self.resolve(argument).number

    def add(self, operation: Operation) -> None:
        leaves = list(tree_leaves((operation.args, operation.kwargs), is_leaf=lambda x: isinstance(x, Value)))
        values = [self.resolve(leaf).number for leaf in leaves if isinstance(leaf, Value)]
        if any(number in self.flow for number in values):
            rule = _RULES.get(operation.name)
            if rule is not None:
                rule(self, operation)
            elif operation.name in _IDENTITY:
                self.same(operation, operation.args[0])
            elif operation.name in _LINEAR:
                self.flow.update(self.replay(operation))
            elif any(value is not None and self.tensor(value).is_floating_point() for value in operation.outputs):
                raise UnknownOperation(
                    f"synaptic flow meets {operation.target}, an operation that it has no rule for;"
                    " prune with a pruner that needs no flow (Magnitude, Random), or ask for a rule"
                )
        elif any(number in self.weights for number in values):
            # A view or a product of weights alone: recomputed from the magnitudes in each pass.
            self.weights.update(self.replay(operation))

    def finish(self, name: str, inputs: tuple[Tensor, ...]) -> Skeleton:
        outputs = [self.resolve(value).number for value in self.recording.outputs]
        reached = tuple(number for number in outputs if number in self.flow)
        if not reached:
            raise ValueError(f"no output of {name} depends on its input, so nothing can flow; check forward()")
        names = {number: name for number, name in self.recording.parameters.items() if number in self.weights}
        parameters = {number: self.recording.tensors[number] for number in names}
        fed = {value.number: tensor for value, tensor in zip(self.recording.inputs, inputs, strict=True) if value.number in self.flow}
        return Skeleton(_name_weights(self.steps, names), fed, parameters, names, self.gains, reached, self.flow)


def _name_weights(steps: list[Step], names: dict[int, str]) -> list[Step]:
    """Mark the steps whose weight is a plain matrix or kernel that nothing else reads."""
    readers = Counter(number for step in steps for number in step.operands)
    made_by = {step.outputs[0]: step for step in steps}
    named = []
    for step in steps:
        name = None
        if step.contraction and isinstance(step.args[1], Value) and readers[step.args[1].number] == 1:
            number = step.args[1].number
            if step.function is aten.convolution:
                transposed, groups = step.args[6], step.args[8]
                name = names.get(number) if groups == 1 and not transposed else None
            elif number in made_by and made_by[number].name == "t":
                source = made_by[number].operands[0]
                name = names.get(source) if readers[source] == 1 else None
        named.append(replace(step, weight=name))
    return named


def _add(builder: _Builder, operation: Operation) -> None:
    left, right = operation.args[:2]
    if builder.carries(left) and builder.carries(right):
        # A difference is a sum here: flow has no sign.
        builder.step(operation, torch.add, builder.operand(left), builder.operand(right))
    else:
        builder.same(operation, left if builder.carries(left) else right)


def _scale(builder: _Builder, operation: Operation) -> None:
    left, right = operation.args[:2]
    if builder.carries(left) and builder.carries(right):
        raise UnknownOperation(
            f"synaptic flow meets {operation.target} of two signals (a gate), which it has no rule for;"
            " prune with a pruner that needs no flow (Magnitude, Random)"
        )
    flow, factor = (left, right) if builder.carries(left) else (right, left)
    if operation.name == "div" and flow is right:
        raise UnknownOperation(f"synaptic flow meets {operation.target} with the signal below the line, which is not linear in it")
    if isinstance(factor, Value) and builder.resolve(factor).number in builder.weights:
        builder.step(operation, operation.target, builder.operand(left), builder.operand(right))
        return
    scale = builder.gain(magnitude(builder.tensor(factor))) if isinstance(factor, Value) else abs(factor)
    builder.step(operation, operation.target, builder.operand(flow), scale)


def _convolution(builder: _Builder, operation: Operation) -> None:
    signal, weight, _, *geometry = operation.args
    if builder.carries(weight):
        raise UnknownOperation("synaptic flow meets a convolution whose kernel is itself computed from the input")
    builder.step(operation, aten.convolution, builder.operand(signal), builder.operand(weight), None, *geometry, contraction=True)


def _product(builder: _Builder, operation: Operation) -> None:
    left, right = operation.args[-2:] if operation.name in ("addmm", "baddbmm", "addmv") else operation.args[:2]
    if builder.carries(left) and builder.carries(right):
        raise UnknownOperation(
            f"synaptic flow meets {operation.target} of two signals (attention), which it has no rule for;"
            " prune with a pruner that needs no flow (Magnitude, Random)"
        )
    if not (builder.carries(left) or builder.carries(right)):
        raise UnknownOperation(f"synaptic flow meets {operation.target} with the signal as its additive term, which it has no rule for")
    builder.step(operation, torch.matmul, builder.operand(left), builder.operand(right), contraction=True)


def _batch_norm(builder: _Builder, operation: Operation) -> None:
    signal, weight, _, _, variance = operation.args[:5]
    epsilon = operation.args[-1]
    if not isinstance(variance, Value):
        # No running statistics: normalised by the batch, like an instance norm.
        return _gain(builder, operation, signal, weight, channel_first=True)
    gain = (builder.tensor(variance) + epsilon).rsqrt()
    if isinstance(weight, Value):
        gain = gain * magnitude(builder.tensor(weight))
    shape = (-1,) + (1,) * (builder.tensor(signal).dim() - 2)
    builder.step(operation, torch.mul, builder.operand(signal), builder.gain(gain, shape))


def _layer_norm(builder: _Builder, operation: Operation) -> None:
    signal, _, weight = operation.args[:3]
    _gain(builder, operation, signal, weight, channel_first=False)


def _group_norm(builder: _Builder, operation: Operation) -> None:
    signal, weight = operation.args[:2]
    _gain(builder, operation, signal, weight, channel_first=True)


def _gain(builder: _Builder, operation: Operation, signal: Value, weight: Any, channel_first: bool) -> None:
    if not isinstance(weight, Value):
        return builder.same(operation, signal)
    shape = (-1,) + (1,) * (builder.tensor(signal).dim() - 2) if channel_first else None
    builder.step(operation, torch.mul, builder.operand(signal), builder.gain(magnitude(builder.tensor(weight)), shape))


def _pad(builder: _Builder, operation: Operation) -> None:
    # Whatever a network pads with is an additive term; zero lets no flow in at the border.
    builder.step(operation, aten.constant_pad_nd, builder.operand(operation.args[0]), operation.args[1], 0.0)


_RULES: dict[str, Callable[[_Builder, Operation], None]] = {
    "add": _add,
    "sub": _add,
    "mul": _scale,
    "div": _scale,
    "convolution": _convolution,
    **dict.fromkeys(_CONTRACTION - {"convolution"}, _product),
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "miopen_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "constant_pad_nd": _pad,
}
