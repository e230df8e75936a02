"""Recording: what a network computes, as a flat list of tensor operations.

The network runs once, in eval mode, on one example, below autograd and behind functionalisation. So it does not matter whether an
operation was called from a module, `torch.nn.functional` or a tensor method, nor whether it worked in place: what is seen is a
sequence of pure ATen operations between numbered values. Nothing of the network is changed: weights, buffers, mode, random state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, functionalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.module_tracker import ModuleTracker

from synflow_pl.plainly import plainly

__all__ = ["Operation", "Recording", "Value", "evaluating", "example_of", "is_number", "record"]


@dataclass(frozen=True)
class Value:
    """A reference to the tensor with this number in a recording."""

    number: int


@dataclass(frozen=True)
class Operation:
    """One ATen call: ``outputs = target(*args, **kwargs)``, with every tensor replaced by its :class:`Value`; ``module`` is the name of
    the innermost module that was running, "" for the network itself.
    """

    target: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Value | None, ...]
    module: str = ""

    @property
    def name(self) -> str:
        """The operation's name without namespace and overload: ``convolution``, ``add``, ``relu``."""
        return self.target._schema.name.split("::")[1].rstrip("_") or self.target._schema.name

    @property
    def reads(self) -> list[Value]:
        """The values that it reads, in order."""
        leaves = tree_leaves((self.args, self.kwargs), is_leaf=lambda leaf: isinstance(leaf, Value))
        return [leaf for leaf in leaves if isinstance(leaf, Value)]

    def bound(self) -> dict[str, Any]:
        """The arguments by the names that the operation's schema gives them."""
        names = [argument.name for argument in self.target._schema.arguments]
        return {**dict(zip(names, self.args, strict=False)), **self.kwargs}


def is_number(tensor: Tensor) -> bool:
    """Whether a tensor can carry flow; indices and marks cannot."""
    return tensor.is_floating_point() or tensor.is_complex()


@dataclass
class Recording:
    """The operations of one forward pass in the order they ran.

    Attributes:
        inputs: the values fed in.
        parameters: parameter and buffer names by value number.
        outputs: floating-point values that came out.
        operations: in order of execution; each value is the output of at most one of them.
        tensors: every recorded value's tensor, by number; constants made on the way are found here.
    """

    inputs: tuple[Value, ...]
    parameters: dict[int, str]
    outputs: tuple[Value, ...] = ()
    operations: list[Operation] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)


class _Recorder(TorchDispatchMode):
    def __init__(self, modules: ModuleTracker) -> None:
        super().__init__()
        self._modules = modules
        self.tensors: list[Tensor] = []  # strong references, or an id could be given to another tensor
        self.operations: list[Operation] = []
        self._numbers: dict[int, int] = {}

    def value(self, tensor: Tensor) -> Value:
        number = self._numbers.get(id(tensor))
        if number is None:
            number = self._numbers[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
        return Value(number)

    def _refer(self, tree: Any) -> Any:
        return tree_map(lambda leaf: self.value(leaf) if isinstance(leaf, Tensor) else leaf, tree)

    def __torch_dispatch__(self, target: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = self._refer(args), self._refer(kwargs)
        result = target(*args, **kwargs)
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        values = tuple(self.value(output) if isinstance(output, Tensor) else None for output in outputs)
        # The tracker's names begin with the network's class.
        module = max(self._modules.parents, key=lambda name: name.count(".")).partition(".")[2]
        self.operations.append(Operation(target, *before, values, module))
        return result


def example_of(
    network: nn.Module, input_shape: Sequence[int] | None, example_input: Tensor | Sequence[Tensor] | None
) -> tuple[Tensor, ...]:
    """The inputs that show a network its input's shape: one image of ones, or ``example_input`` moved to where the network is.

    Args:
        network: gives device and precision: those of its first real floating-point parameter.
        input_shape: (C, H, W) or whatever follows the batch dimension, for a network with one input.
        example_input: a tensor, or a tuple or list of tensors, the arguments of ``forward()`` by position, with the batch dimension;
            instead of ``input_shape``.

    Raises:
        TypeError: if ``example_input`` is or holds anything but tensors.
        ValueError: if neither or both are given, a size is not positive, or no parameter gives a precision.
    """
    parameter = next((parameter for parameter in network.parameters() if parameter.is_floating_point()), None)
    if parameter is None:
        raise ValueError(f"{type(network).__name__} has no parameter of real floating-point numbers, so there is nothing to prune")
    if (input_shape is None) == (example_input is None):
        raise ValueError("give either input_shape=(C, H, W) or example_input=, a tensor or a tuple of tensors with a batch dimension")
    if input_shape is not None:
        if not isinstance(input_shape, Sequence) or not all(isinstance(size, int) and size > 0 for size in input_shape):
            shown = tuple(input_shape) if isinstance(input_shape, Sequence) else input_shape
            raise ValueError(f"input_shape: {shown} must be positive whole numbers without the batch, such as (3, 32, 32)")
        return (torch.ones(1, *input_shape, device=parameter.device, dtype=parameter.dtype),)
    inputs = tuple(example_input) if isinstance(example_input, (tuple, list)) else (example_input,)
    for index, tensor in enumerate(inputs):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"example_input{f'[{index}]' if isinstance(example_input, (tuple, list)) else ''}: expected a tensor, got"
                f" {'None' if tensor is None else f'a {type(tensor).__name__}'}; give one tensor, or a tuple of the tensors that"
                " forward() takes by position, and set everything else inside a module that wraps the network"
            )
        if tensor.is_meta:
            raise ValueError("example_input: a tensor on the meta device has no values; give one on the network's device")
    if not inputs:
        raise ValueError("example_input: an empty tuple shows no input; give the tensors that forward() takes by position")
    return tuple(
        tensor.detach().to(parameter.device, parameter.dtype if tensor.is_floating_point() else tensor.dtype) for tensor in inputs
    )


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is back in the mode it was in, each by itself."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _explained(network: nn.Module, inputs: tuple[Tensor, ...]) -> Iterator[None]:
    """Turn an error of the network's own ``forward()`` on these inputs into a ValueError that names them.

    An error that ``forward()`` raises only while it is recorded passes unchanged.
    """
    try:
        yield
    except Exception as error:
        try:
            with evaluating(network), torch.random.fork_rng(devices=[]), torch.no_grad():
                copies = {name: tensor.clone() for name, tensor in (*network.named_parameters(), *network.named_buffers())}
                functional_call(network, copies, inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as cause:
            shapes = ", ".join(f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in inputs)
            reason = str(cause).strip().partition("\n")[0].rstrip(".")
            raise ValueError(
                f"{type(network).__name__} fails on an input of {shapes} ({type(cause).__name__}: {reason}); correct input_shape, or"
                " give the example_input that forward() takes (whole numbers for words)"
            ) from cause
        raise error


@contextmanager
def _attention_in_parts() -> Iterator[None]:
    """In eval mode an encoder layer may become one operation that hides its projections; not inside."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@plainly()
def record(network: nn.Module, inputs: tuple[Tensor, ...]) -> Recording:
    """Run ``network`` once on ``inputs`` and write down what it computed.

    Args:
        network: any module; it is left exactly as it was found.
        inputs: as :func:`example_of` gives them.

    Returns:
        The recording. Its tensors are those of this one pass, at the network's own precision.
    """
    # A buffer may be written to even in eval mode (a step counter), so the pass gets copies.
    copies = {id(buffer): buffer.detach().clone() for buffer in network.buffers()}
    copies |= {id(parameter): parameter.detach() for parameter in network.parameters()}
    # Each tensor of each module once, though a module may have several names and a tensor several owners: torch would tie them by
    # name, and then gives a module with two names the pass's tensor back instead of its own.
    state = {
        f"{prefix}.{name}".lstrip("."): copies[id(tensor)]
        for prefix, module in network.named_modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
    modules = ModuleTracker()
    recorder = _Recorder(modules)
    named = {
        recorder.value(copies[id(tensor)]).number: name for name, tensor in (*network.named_parameters(), *network.named_buffers())
    }
    fed = tuple(recorder.value(tensor) for tensor in inputs)

    def forward(state: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Any:
        return functional_call(network, state, inputs, tie_weights=False)

    with (
        _explained(network, inputs),
        evaluating(network),
        _attention_in_parts(),
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
        modules,
        recorder,
    ):
        result = functionalize(forward)(state, inputs)
    outputs = tuple(recorder.value(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and is_number(leaf))
    return Recording(fed, named, outputs, recorder.operations, recorder.tensors)
