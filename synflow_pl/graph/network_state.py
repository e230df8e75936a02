"""Network state: restores everything that a network holds after a forward pass.

That is: attributes of modules and of the objects that they hold, entries of containers, variables
in the closures of hooks and other functions, attributes of the modules' classes, random number
generators. (Tensors that a pass writes to are restored by :mod:`synflow_pl.graph.recorder`, which
observes each write.)
"""

from __future__ import annotations

import functools
import operator
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence, MutableSet
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn

__all__ = ["preserve_state", "seed", "seeded"]

# Objects of these packages, other than modules, surround a network (a trainer, a logger) and are
# not a part of its state.
_HOLDERS = {"builtins", "collections", "types", "dataclasses", "weakref"}
_MACHINERY = (sys.stdlib_module_names - _HOLDERS - {"__main__"}) | {
    "torch",
    "lightning",
    "pytorch_lightning",
    "lightning_fabric",
}
_PLAIN = (
    int,
    float,
    complex,
    str,
    bytes,
    bool,
    type(None),
    Tensor,
    torch.dtype,
    torch.device,
    torch.Size,
    types.ModuleType,
)
_CONTAINERS = frozenset({dict, OrderedDict, list, set, deque})
_ABSENT = object()


@contextmanager
def preserve_state(network: nn.Module) -> Iterator[None]:
    """Restore the network and the random state of PyTorch, Python and NumPy after the context.

    Inside, random numbers come from a fixed seed.
    """
    restore: list[Callable[[], object]] = []
    _Walk(restore).over(network)
    try:
        with seeded():
            yield
    finally:
        for put_back in restore:
            put_back()


@contextmanager
def seeded() -> Iterator[None]:
    """Seed PyTorch, Python and NumPy inside the context, and restore their random states."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    states = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            seed(0)
            random.seed(0)
            numpy.random.seed(0)
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


def seed(number: int) -> None:
    """Seed the generators of PyTorch, except those of devices that are not initialised yet.

    The state of the latter could not be restored.

    Args:
        number: Seed, a non-negative integer.
    """
    (torch.manual_seed if torch.cuda.is_initialized() else torch.default_generator.manual_seed)(
        number
    )


class _Walk:
    """Visits every mutable object that a network refers to, and stores how to restore it."""

    def __init__(self, restore: list[Callable[[], object]]) -> None:
        self._restore = restore
        # Strong references, since the id of a deleted object may be reused.
        self._seen: dict[int, Any] = {}
        self._ahead: list[Any] = []
        self._empty: list[Any] = []
        restore.append(self._put_back_empty)

    def over(self, start: Any) -> None:
        self._ahead.append(start)
        while self._ahead:
            item = self._ahead.pop()
            if isinstance(item, _PLAIN) or id(item) in self._seen:
                continue
            self._seen[id(item)] = item
            self._visit(item)

    def _visit(self, item: Any) -> None:
        if type(item) in _CONTAINERS:
            self._contents(item)
        elif type(item) is torch.Generator:
            self._restore.append(functools.partial(item.set_state, item.get_state()))
        elif isinstance(item, types.FunctionType):
            for cell in item.__closure__ or ():
                self._cell(cell)
            self._ahead += [*(item.__defaults__ or ()), *(item.__kwdefaults__ or {}).values()]
            self._attributes(item)
        elif isinstance(item, types.MethodType):
            self._ahead += [item.__self__, item.__func__]
        elif isinstance(item, functools.partial):
            self._ahead += [item.func, *item.args, *item.keywords.values()]
        elif isinstance(item, (tuple, frozenset)):
            self._ahead += item
        elif isinstance(item, type):
            return
        elif (
            isinstance(item, nn.Module) or type(item).__module__.partition(".")[0] not in _MACHINERY
        ):
            self._contents(item)
            self._attributes(item)
            if isinstance(item, nn.Module):
                for kind in type(item).__mro__:
                    if kind.__module__.partition(".")[0] not in {*_MACHINERY, "builtins"}:
                        self._class(kind)

    def _put_back_empty(self) -> None:
        for container in self._empty:
            if container:
                container.clear()

    def _contents(self, item: Any) -> None:
        if type(item) in _CONTAINERS and not item:
            # most containers are empty: a module has a dozen empty dicts of hooks
            self._empty.append(item)
        elif isinstance(item, (dict, MutableMapping)):
            entries = dict(item.items())
            self._ahead += [value for value in entries.values() if not isinstance(value, _PLAIN)]
            self._restore.append(functools.partial(_put_back_mapping, item, entries))
        elif isinstance(item, (list, deque, MutableSequence)) and not isinstance(item, bytearray):
            self._ahead += (members := list(item))
            self._restore.append(functools.partial(_put_back_sequence, item, members))
        elif isinstance(item, (set, MutableSet)):
            self._ahead += (members := list(item))
            self._restore.append(functools.partial(_put_back_set, item, members))

    def _attributes(self, item: Any) -> None:
        held = getattr(item, "__dict__", None)
        if isinstance(held, dict):
            self._contents(held)
            self._seen[id(held)] = held
        kind: Any = type(item)
        for slot in _slots(kind):
            value = slot.__get__(item) if _is_set(slot, item) else _ABSENT
            self._ahead.append(value)
            self._restore.append(functools.partial(_put_back_slot, slot, item, value))

    def _cell(self, cell: types.CellType) -> None:
        if id(cell) in self._seen:
            return
        self._seen[id(cell)] = cell
        try:
            value = cell.cell_contents
        except ValueError:  # the variable has no value yet
            value = _ABSENT
        self._ahead.append(value)
        self._restore.append(functools.partial(_put_back_cell, cell, value))

    def _class(self, kind: type) -> None:
        if id(kind) in self._seen:
            return
        self._seen[id(kind)] = kind
        held = {name: value for name, value in vars(kind).items() if not name.startswith("__")}
        self._ahead += [
            value
            for value in held.values()
            if isinstance(value, (dict, list, set, deque, types.FunctionType))
        ]
        self._restore.append(functools.partial(_put_back_class, kind, held))


def _same(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(map(operator.is_, left, right))


def _put_back_mapping(mapping: Any, entries: dict[Any, Any]) -> None:
    if not (
        _same(list(mapping.keys()), list(entries))
        and _same(list(mapping.values()), list(entries.values()))
    ):
        mapping.clear()
        mapping.update(entries)


def _put_back_sequence(sequence: Any, members: list[Any]) -> None:
    if not _same(list(sequence), members):
        sequence.clear()
        sequence.extend(members)


def _put_back_set(held: Any, members: list[Any]) -> None:
    if len(held) != len(members) or any(member not in held for member in members):
        held.clear()
        for member in members:
            held.add(member)


@functools.lru_cache(4096)
def _slots(kind: type) -> tuple[Any, ...]:
    """Return the descriptors of the attributes that instances keep in ``__slots__``."""
    if kind.__module__ == "builtins":
        return ()
    held = [vars(base) for base in kind.__mro__ if "__slots__" in vars(base)]
    return tuple(
        slot
        for names in held
        for slot in names.values()
        if isinstance(slot, types.MemberDescriptorType)
    )


def _is_set(slot: Any, item: Any) -> bool:
    try:
        slot.__get__(item)
    except AttributeError:
        return False
    return True


def _put_back_slot(slot: Any, item: Any, value: Any) -> None:
    if value is not _ABSENT:
        if not _is_set(slot, item) or slot.__get__(item) is not value:
            slot.__set__(item, value)
    elif _is_set(slot, item):
        slot.__delete__(item)


def _put_back_cell(cell: types.CellType, value: Any) -> None:
    if value is _ABSENT:
        del cell.cell_contents
    else:
        cell.cell_contents = value


def _put_back_class(kind: type, held: dict[str, Any]) -> None:
    now = {name: value for name, value in vars(kind).items() if not name.startswith("__")}
    for name in now.keys() - held.keys():
        delattr(kind, name)
    for name, value in held.items():
        if now.get(name, _ABSENT) is not value:
            setattr(kind, name, value)
