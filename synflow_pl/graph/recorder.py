"""Recorder: records each ATen call of a forward pass, with writes in place as pure operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from synflow_pl.graph.aliasing import functional_form, is_view, scattered, writes, written_tensors
from synflow_pl.graph.noise import Noise, replace_by_mean
from synflow_pl.graph.operation import Operation, Value
from synflow_pl.graph.written_memory import memory_of, put_back

__all__ = ["Recorder"]


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


class Recorder(TorchDispatchMode):
    """Records the ATen calls that run while it is active.

    Args:
        running: Names of the modules that are running, the innermost last.

    Attributes:
        tensors: Tensor of each value, by number.
        operations: Operations in order of execution.
        noise: Distributions of the values that are random numbers, by number.
    """

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
        put_back(self._before)

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
        if writes(target):
            return self._write(target, args, kwargs, read)
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

    def _write(self, target: Any, args: Any, kwargs: Any, read: tuple[Any, Any]) -> Any:
        changed = written_tensors(target, args, kwargs)
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
        # Schemas have `out` among the arguments that are given by keyword alone.
        outs = {argument.name for argument in target._schema.arguments if argument.is_out}
        others = {key: item for key, item in read[1].items() if form is target or key not in outs}
        self.operations.append(Operation(form, read[0], others, tuple(values), self._module))
        self._note(noise, values)
        return result

    def _note(self, noise: Noise | None, values: Sequence[Value | None]) -> None:
        if noise is not None and values and values[0] is not None:
            self.noise[values[0].number] = noise

    def _refer(self, tree: Any) -> Any:
        return tree_map(lambda leaf: self.value(leaf) if isinstance(leaf, Tensor) else leaf, tree)

    def _number(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        self._lying.setdefault(memory_of(tensor), []).append(len(self.tensors) - 1)
        return len(self.tensors) - 1

    def _allocated(self, tensor: Tensor) -> None:
        """Record that the pass allocated this memory, unless an earlier tensor uses it."""
        if (place := memory_of(tensor)) not in self._lying:
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
        place = memory_of(tensor)
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
