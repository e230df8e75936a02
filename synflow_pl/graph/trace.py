"""Tracing: records the computation of a network as a flat list of tensor operations.

The network runs once, in eval mode, on one example, below autograd. It therefore makes no
difference whether an operation is called from a module, `torch.nn.functional`, a tensor method, a
custom autograd function or TorchScript: each run is a sequence of ATen operations between numbered
values. Operations that write in place are recorded as pure ones (:mod:`synflow_pl.graph.aliasing`).
The network is run on plain tensors and not changed: whatever it writes to and stores is restored.

Random numbers are replaced by their mean, so that no value depends on a seed; the values that were
computed from random numbers are recorded (:mod:`synflow_pl.graph.noise`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from synflow_pl.graph.aliasing import functional_form, is_view, scattered, writes
from synflow_pl.graph.control import Controlled
from synflow_pl.graph.network_state import preserve_state
from synflow_pl.graph.noise import Noise, WithoutAlphaDropout, replace_by_mean
from synflow_pl.graph.operation import Operation, Value
from synflow_pl.graph.outputs import tensors
from synflow_pl.numerics import full_precision

__all__ = ["Graph", "Operation", "Value", "evaluating", "example_of", "is_number", "trace"]


def is_number(tensor: Tensor) -> bool:
    """Return whether a tensor can carry flow: whether it is floating-point or complex."""
    return tensor.is_floating_point() or tensor.is_complex()


@dataclass
class Graph:
    """The operations of one forward pass in the order in which they ran.

    Attributes:
        inputs: Inputs of the network.
        parameters: Names of parameters and buffers by the number of their value.
        outputs: Each tensor that the network returns, in containers and objects of any class;
            booleans and integers are converted to float32.
        operations: Operations in order of execution; each value is the output of at most one of
            them.
        tensors: Tensor of each value, by number, including constants that the network creates.
        noise: Distributions of the values that are random numbers, by number; their tensors hold
            the mean.
        decisions: Numbers of the outputs that were booleans or integers.
        opaque: Place and type of the first part of the output that cannot be searched, "" if there
            is none.
    """

    inputs: tuple[Value, ...]
    parameters: dict[int, str]
    outputs: tuple[Value, ...] = ()
    operations: list[Operation] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    noise: dict[int, Noise] = field(default_factory=dict)
    decisions: frozenset[int] = frozenset()
    opaque: str = ""


@dataclass(eq=False)
class _Group:
    """A tensor and its views, with the writes to views that its own value does not include yet."""

    root: _Entry | None = None
    generation: int = 0
    pending: list[tuple[_Entry, int]] = field(default_factory=list)


@dataclass(eq=False)
class _Entry:
    """A tensor of the forward pass with its number, and its base tensor if it is a view."""

    tensor: Tensor
    number: int
    group: _Group
    generation: int
    parent: _Entry | None = None
    view: tuple[Any, tuple[Any, ...], dict[str, Any], int] | None = None


class _Recorder(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, running: list[str]) -> None:
        super().__init__()
        self._running = running
        self.tensors: list[Tensor] = []
        self.operations: list[Operation] = []
        self.noise: dict[int, Noise] = {}
        # Entries hold a reference to their tensor, since the id of a deleted one may be reused.
        self._entries: dict[int, _Entry] = {}
        # By storage: the numbers of the values in it, whether the pass allocated it, and its
        # contents before the first write.
        self._lying: dict[int, list[int]] = {}
        self._made: set[int] = set()
        self._before: dict[int, tuple[Tensor, torch.UntypedStorage]] = {}
        self._module = ""

    def value(self, tensor: Tensor) -> Value:
        """Return the value of a tensor at this moment."""
        entry = self._entries.get(id(tensor))
        if entry is None:
            entry = self._enter(tensor, self._number(tensor))
        elif entry.generation != entry.group.generation:
            self._refresh(entry)
        return Value(entry.number)

    def restore(self) -> None:
        """Restore the memory that the pass has written to and not allocated itself."""
        _put_back(self._before)

    def __torch_dispatch__(
        self, target: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(target, HigherOrderOperator):
            raise ValueError(
                f"forward() calls the higher-order operator {target.name()}, whose operations"
                " cannot be recorded; use tensor operations in its place for pruning"
            )
        # In inference mode, composite operations are not decomposed before they arrive here.
        if torch.is_inference_mode_enabled():
            with self:
                if (result := target.decompose(*args, **kwargs)) is not NotImplemented:
                    return result
        self._module = self._running[-1] if self._running else ""
        read = self._refer(args), self._refer(kwargs)
        if written := writes(target):
            return self._write(target, args, kwargs, read, written)
        result = target(*args, **kwargs)
        noise = replace_by_mean(target, args, kwargs, result)
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        values = []
        for index, output in enumerate(outputs):
            if isinstance(output, Tensor) and id(output) not in self._entries:
                parent = (
                    self._entries.get(id(args[0]))
                    if args and isinstance(args[0], Tensor) and is_view(target)
                    else None
                )
                self._allocated(output)
                self._enter(output, self._number(output), parent, (target, args[1:], kwargs, index))
            values.append(self.value(output) if isinstance(output, Tensor) else None)
        operation = Operation(target, *read, tuple(values), self._module)
        # An operation that returns its arguments is not recorded.
        if not values or any(value not in operation.reads for value in values):
            self.operations.append(operation)
        self._note(noise, values)
        return result

    def _write(
        self, target: Any, args: Any, kwargs: Any, read: tuple[Any, Any], written: tuple[str, ...]
    ) -> Any:
        given = {
            **dict(
                zip([argument.name for argument in target._schema.arguments], args, strict=False)
            ),
            **kwargs,
        }
        changed = [
            leaf
            for name in written
            for leaf in tree_leaves(given.get(name))
            if isinstance(leaf, Tensor)
        ]
        for tensor in changed:
            self._preserve(tensor)
        result = target(*args, **kwargs)
        noise = replace_by_mean(target, args, kwargs, result)
        for tensor in changed:
            entry = self._entries[id(tensor)]
            entry.number, group = self._number(tensor), entry.group
            group.generation += 1
            entry.generation = group.generation
            if entry is not group.root:
                if group.pending and group.pending[-1][0] is entry:
                    group.pending.pop()
                group.pending.append((entry, entry.number))
        outputs = [
            leaf
            for leaf in (result if isinstance(result, (tuple, list)) else (result,))
            if isinstance(leaf, Tensor)
        ]
        for output in outputs:
            self._allocated(output)
        values = [self.value(tensor) for tensor in outputs or changed]
        form = functional_form(target)
        names = [argument.name for argument in target._schema.arguments]
        outs = (
            {argument.name for argument in target._schema.arguments if argument.is_out}
            if form is not target
            else set()
        )
        arguments = tuple(
            item for name, item in zip(names, read[0], strict=False) if name not in outs
        )
        others = {key: item for key, item in read[1].items() if key not in outs}
        self.operations.append(Operation(form, arguments, others, tuple(values), self._module))
        self._note(noise, values)
        return result

    def _note(self, noise: Noise | None, values: Sequence[Value | None]) -> None:
        if noise is not None and values and values[0] is not None:
            self.noise[values[0].number] = noise

    def _refer(self, tree: Any) -> Any:
        return tree_map(lambda leaf: self.value(leaf) if isinstance(leaf, Tensor) else leaf, tree)

    def _number(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        self._lying.setdefault(_memory(tensor), []).append(len(self.tensors) - 1)
        return len(self.tensors) - 1

    def _allocated(self, tensor: Tensor) -> None:
        """Record that the pass allocated this memory, unless an earlier tensor uses it."""
        if (place := _memory(tensor)) not in self._lying:
            self._made.add(place)

    def _enter(
        self, tensor: Tensor, number: int, parent: _Entry | None = None, view: Any = None
    ) -> _Entry:
        group = _Group() if parent is None else parent.group
        entry = self._entries[id(tensor)] = _Entry(
            tensor, number, group, group.generation, parent, view if parent is not None else None
        )
        if parent is None:
            group.root = entry
        return entry

    def _preserve(self, tensor: Tensor) -> None:
        """Copy the values in memory that is about to be written to."""
        place = _memory(tensor)
        numbers = self._lying.pop(place, [])
        if not isinstance(place, int) or not numbers:
            return
        before = tensor.untyped_storage().clone()
        if place not in self._made and place not in self._before:
            self._before[place] = tensor, before
        for number in numbers:
            old = self.tensors[number]
            if old.is_conj() or old.is_neg():
                self.tensors[number] = old.clone()
            else:
                copy = torch.empty(0, dtype=old.dtype, device=old.device)
                self.tensors[number] = copy.set_(
                    before, old.storage_offset(), old.size(), old.stride()
                )

    # -- Views after a write

    def _refresh(self, entry: _Entry) -> None:
        """Recompute a tensor that was written to through another view."""
        group = entry.group
        root = group.root
        assert root is not None
        for written, number in group.pending:
            root.number = self._replaced(written, number)
            root.generation = group.generation
        group.pending.clear()
        root.generation = group.generation
        if entry is not root:
            entry.number = self._seen(entry)
            entry.generation = group.generation

    def _seen(self, entry: _Entry) -> int:
        """Recompute a view from its base tensor and return its number."""
        if entry.parent is None or entry.view is None:
            return entry.number
        target, rest, kwargs, index = entry.view
        return self._also(target, (Value(self._seen(entry.parent)), *rest), kwargs)[index]

    def _replaced(self, entry: _Entry, number: int) -> int:
        """Return the number of the base tensor with a view of it replaced by a value."""
        if entry.parent is None or entry.view is None:
            return number
        shape = entry.parent.tensor.shape
        target, rest = scattered(*entry.view, shape)
        if target is None:
            return self._replaced(entry.parent, number)
        if "scatter" in target._schema.name:
            if target is torch.ops.aten.as_strided_scatter.default:
                rest = (
                    list(entry.tensor.shape),
                    list(entry.tensor.stride()),
                    entry.tensor.storage_offset(),
                )
            number = self._also(
                target, (Value(self._seen(entry.parent)), Value(number), *rest), {}
            )[0]
        else:
            number = self._also(target, (Value(number), *rest), {})[0]
        return self._replaced(entry.parent, number)

    def _also(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
        """Record an operation that the network has not called itself."""
        given = [self.tensors[item.number] if isinstance(item, Value) else item for item in args]
        result = (
            given[0].reshape(args[1])
            if target is torch.ops.aten.view.default
            else target(*given, **kwargs)
        )
        numbers = [
            self._number(output)
            for output in (result if isinstance(result, (tuple, list)) else (result,))
        ]
        self.operations.append(
            Operation(
                target, args, kwargs, tuple(Value(number) for number in numbers), self._module
            )
        )
        return numbers


class _Writes(TorchDispatchMode):
    """Keeps the contents of memory before a pass writes to it."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[int, tuple[Tensor, torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, target: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(target, HigherOrderOperator):
            return target(*args, **kwargs)  # the functions of a higher-order operator may not write
        given = {
            **dict(
                zip([argument.name for argument in target._schema.arguments], args, strict=False)
            ),
            **kwargs,
        }
        for leaf in tree_leaves([given.get(name) for name in writes(target)]):
            if (
                isinstance(leaf, Tensor)
                and leaf.layout is torch.strided
                and (place := _memory(leaf)) not in self.before
            ):
                self.before[place] = leaf, leaf.untyped_storage().clone()
        return target(*args, **kwargs)


def _put_back(held: Mapping[int, tuple[Tensor, torch.UntypedStorage]]) -> None:
    """Restore the contents of memory."""
    for tensor, before in held.values():
        memory = tensor.untyped_storage()
        if memory.nbytes() != before.nbytes():
            memory.resize_(before.nbytes())
        memory.copy_(before)


def _memory(tensor: Tensor) -> int:
    """Return a number that two tensors share exactly if they share memory."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else -id(tensor)


def example_of(
    network: nn.Module,
    input_shape: Sequence[int] | None,
    example_input: Tensor | Sequence[Tensor] | None,
) -> tuple[Tensor, ...]:
    """Return example inputs for tracing: ones of ``input_shape``, or ``example_input``.

    Args:
        network: Network whose first floating-point parameter gives device and precision.
        input_shape: Shape without the batch dimension, such as (C, H, W), for a network with one
            input.
        example_input: Arguments of ``forward()`` with the batch dimension, by position: a tensor,
            or a tuple or list of tensors. It is given in place of ``input_shape`` and moved to the
            device of the network.

    Raises:
        TypeError: If ``example_input`` is or holds anything but tensors.
        ValueError: If neither or both are given, a size is not positive, or no parameter gives a
            precision.

    Example:
        >>> from torch import nn
        >>> from synflow_pl.flow import example_of
        >>> (images,) = example_of(nn.Conv2d(3, 8, 3), (3, 32, 32), None)
        >>> images.shape
        torch.Size([1, 3, 32, 32])
    """
    parameter = next(
        (parameter for parameter in network.parameters() if parameter.is_floating_point()), None
    )
    if parameter is None:
        raise ValueError(
            f"{type(network).__name__} has no parameter of real floating-point numbers, so there is"
            " nothing to prune"
        )
    if (input_shape is None) == (example_input is None):
        raise ValueError(
            "give either input_shape=(C, H, W) or example_input=, a tensor or a tuple of tensors"
            " with a batch dimension"
        )
    if input_shape is not None:
        if not isinstance(input_shape, Sequence) or not all(
            isinstance(size, int) and size > 0 for size in input_shape
        ):
            shown = tuple(input_shape) if isinstance(input_shape, Sequence) else input_shape
            raise ValueError(
                f"input_shape: {shown} must be positive whole numbers without the batch, such as"
                " (3, 32, 32)"
            )
        return (torch.ones(1, *input_shape, device=parameter.device, dtype=parameter.dtype),)
    inputs = tuple(example_input) if isinstance(example_input, (tuple, list)) else (example_input,)
    for index, tensor in enumerate(inputs):
        if not isinstance(tensor, Tensor):
            place = f"[{index}]" if isinstance(example_input, (tuple, list)) else ""
            kind = "None" if tensor is None else f"a {type(tensor).__name__}"
            raise TypeError(
                f"example_input{place}: expected a tensor, got {kind}; give one tensor, or a tuple"
                " of the tensors that forward() takes by position, and set everything else inside"
                " a module that wraps the network"
            )
        if tensor.is_meta:
            raise ValueError(
                "example_input: a tensor on the meta device has no values; give one on the"
                " network's device"
            )
    if not inputs:
        raise ValueError(
            "example_input: an empty tuple shows no input; give the tensors that forward() takes by"
            " position"
        )
    return tuple(
        tensor.detach().to(
            parameter.device, parameter.dtype if tensor.is_floating_point() else tensor.dtype
        )
        for tensor in inputs
    )


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network in eval mode inside the context and restore each module's mode after it.

    Example:
        >>> from torch import nn
        >>> from synflow_pl.flow import evaluating
        >>> network = nn.Dropout()
        >>> with evaluating(network):
        ...     network.training
        False
        >>> network.training
        True
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _explained(network: nn.Module, inputs: tuple[Tensor, ...]) -> Iterator[None]:
    """Turn an error of ``forward()`` on these inputs into a ValueError that names their shapes.

    An error that ``forward()`` raises only while it is traced is raised unchanged.
    """
    try:
        yield
    except Exception as error:
        written = _Writes()
        try:
            with (
                preserve_state(network),
                evaluating(network),
                torch.random.fork_rng(devices=[]),
                torch.no_grad(),
            ):
                copies = {
                    name: tensor.clone()
                    for name, tensor in (*network.named_parameters(), *network.named_buffers())
                }
                try:
                    with written:
                        functional_call(network, copies, inputs)
                finally:
                    _put_back(written.before)
        except torch.OutOfMemoryError:
            raise
        except Exception as cause:
            shapes = ", ".join(
                f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
                for tensor in inputs
            )
            reason = str(cause).strip().partition("\n")[0].rstrip(".")
            raise ValueError(
                f"{type(network).__name__} fails on an input of {shapes} ({type(cause).__name__}:"
                f" {reason}); correct input_shape, or give the example_input that forward() takes"
                " (whole numbers for words)"
            ) from cause
        raise error


@contextmanager
def _attention_in_parts() -> Iterator[None]:
    """Disable the fused transformer encoder layer of eval mode, which hides its projections."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _named(network: nn.Module, running: list[str]) -> Iterator[None]:
    """Keep the names of the running modules in a list, the innermost last."""
    names = {id(module): name for name, module in network.named_modules()}

    def enter(module: nn.Module, _: Any) -> None:
        # A module that is not registered in the network runs as a part of its caller.
        running.append(names.get(id(module), running[-1] if running else ""))

    def leave(module: nn.Module, *_: Any) -> None:
        running.pop()

    handles = (
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _constant(network: nn.Module) -> Iterator[None]:
    """Disable gradients of parameters inside, and restore parameters and buffers after it.

    Both their memory and their values are restored.
    """
    held = [(tensor, tensor.detach()) for tensor in (*network.parameters(), *network.buffers())]
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    trained = [
        parameter
        for parameter in network.parameters()
        if parameter.requires_grad and parameter.is_leaf
    ]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for tensor, before in held:
            if tensor.data_ptr() != before.data_ptr() or tensor.shape != before.shape:
                tensor.data = before
        for buffer, before in buffers:
            # BatchNorm kernels write to the running statistics without declaring it in their
            # schema.
            if not torch.equal(torch.nan_to_num(buffer), torch.nan_to_num(before)):
                buffer.detach().copy_(before)
        for parameter in trained:
            parameter.requires_grad_(True)


@full_precision()
def trace(network: nn.Module, inputs: tuple[Tensor, ...]) -> Graph:
    """Run ``network`` once on ``inputs`` and return the graph of its operations.

    Args:
        network: Any module. The module, and whatever its forward pass stores tensors in, are left
            unchanged.
        inputs: Example inputs, as returned by :func:`example_of`.

    Returns:
        The graph. Its tensors are those of this one pass, at the precision of the network.

    Raises:
        ValueError: If the network creates parameters in its first forward pass, or fails on
            ``inputs``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from synflow_pl.flow import trace
        >>> graph = trace(nn.Sequential(nn.Linear(2, 1), nn.ReLU()), (torch.ones(1, 2),))
        >>> [operation.name for operation in graph.operations]
        ['t', 'addmm', 'relu']
    """
    _check_created(network)
    running: list[str] = []
    recorder = _Recorder(running)
    names = {id(tensor): name for name, tensor in network.named_parameters()}
    parameters = dict(network.named_parameters())
    # A fused TorchScript graph would hide its operations.
    unoptimised = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    with (
        _explained(network, inputs),
        preserve_state(network),
        evaluating(network),
        _constant(network),
    ):
        named = {
            recorder.value(tensor).number: name
            for name, tensor in (*network.named_parameters(), *network.named_buffers())
        }
        fed = tuple(recorder.value(tensor) for tensor in inputs)
        try:
            with (
                _attention_in_parts(),
                unoptimised,
                torch.no_grad(),
                _named(network, running),
                WithoutAlphaDropout(),
                Controlled(),
                recorder,
            ):
                numbers, decisions, opaque = tensors(network(*inputs), type(network).__name__)
            outputs = tuple(recorder.value(leaf) for leaf in (*numbers, *decisions))
            decided = frozenset(recorder.value(leaf).number for leaf in decisions)
            created = [
                name
                for name, tensor in network.named_parameters()
                if id(tensor) not in names and name not in parameters
            ]
        finally:
            recorder.restore()
    if created:
        raise ValueError(_CREATED.format(type(network).__name__, ", ".join(created)))
    return Graph(
        fed, named, outputs, recorder.operations, recorder.tensors, recorder.noise, decided, opaque
    )


_CREATED = (
    "{} creates parameters in its first forward pass ({}), so they could not be pruned; call the"
    " network once on an example before pruning it"
)


def _check_created(network: nn.Module) -> None:
    created = [
        name for name, tensor in network.named_parameters() if torch.nn.parameter.is_lazy(tensor)
    ]
    if created:
        raise ValueError(_CREATED.format(type(network).__name__, ", ".join(created)))
