"""Tracing leaves the network unchanged, whatever forward() stores or writes to."""

from __future__ import annotations

import copy
import io
import random
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from synflow_pl import Compaction, prune
from synflow_pl.diagnosis import diagnose
from synflow_pl.flow import linearise, trace
from synflow_pl.pruners import SynFlow


class Slots:
    __slots__ = ("table",)


class Storing(nn.Module):
    """Two layers, and a forward pass that calls ``store`` with the module and the hidden values."""

    shared: Any = None

    def __init__(self, store: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.last, self.store = nn.Linear(8, 16), nn.Linear(16, 4), store
        self.child = nn.Identity()
        self.table: Any = None
        self.maps: list[Any] = []
        self.by_name: dict[str, Any] = {"nested": [deque()]}
        self.seen: set[Any] = set()
        self.state = SimpleNamespace(cache=None, slots=Slots())
        self.generator = torch.Generator()
        self.plain = torch.zeros(3)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("running", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        self.store(self, hidden)
        return self.last(hidden)


def _assign(module: Any, hidden: Tensor) -> None:
    module.table = torch.cos(torch.arange(5.0))


def _buffer(module: Any, hidden: Tensor) -> None:
    module.steps += 1
    module.running.mul_(0.9).add_(0.1 * hidden.mean((0, 1)))
    module.register_buffer("late", hidden.clone(), persistent=False)


def _rebound(module: Any, hidden: Tensor) -> None:
    module.running = hidden.mean((0, 1))


def _containers(module: Any, hidden: Tensor) -> None:
    module.maps.append(hidden)
    module.by_name["hidden"] = hidden
    module.by_name["nested"][0].append(hidden)
    module.seen.add(hidden)


def _objects(module: Any, hidden: Tensor) -> None:
    module.state.cache = hidden
    module.state.slots.table = hidden
    type(module).shared = hidden
    module.forward.__func__.table = hidden


def _submodule(module: Any, hidden: Tensor) -> None:
    module.child.attention = hidden
    module.grown = nn.Identity()


def _memory(module: Any, hidden: Tensor) -> None:
    module.plain.add_(1)
    module.last.bias.data.add_(1)
    module.first.weight.data[0].zero_()
    module.first.bias.data = module.first.bias.data * 2


def _statistics(module: Any, hidden: Tensor) -> None:
    F.batch_norm(hidden.flatten(0, 1), module.running, module.plain.new_ones(16), training=True)


def _chance(module: Any, hidden: Tensor) -> None:
    torch.rand(3, generator=module.generator)
    torch.rand(3)
    random.random()


def _keeper() -> Callable[[Any, Tensor], None]:
    kept: list[Tensor] = []
    last: Any = None

    def keep(module: Any, hidden: Tensor) -> None:
        nonlocal last
        kept.append(hidden)
        last = hidden

    return keep


def picture(item: Any, seen: set[int]) -> Any:
    """Return the contents of an object as plain values that can be compared."""
    if isinstance(item, Tensor):
        return type(item).__name__, id(item), item.requires_grad, item.detach().tolist()
    if isinstance(item, torch.Generator):
        return item.get_state().tolist()
    if id(item) in seen:
        return None
    seen.add(id(item))
    if isinstance(item, dict):
        return [(key, picture(value, seen)) for key, value in item.items()]
    if isinstance(item, (list, tuple, deque, set)):
        return [picture(member, seen) for member in item]
    closure = [
        picture(cell.cell_contents, seen) for cell in getattr(item, "__closure__", None) or ()
    ]
    slots = [
        picture(getattr(item, name, "absent"), seen) for name in getattr(item, "__slots__", ())
    ]
    held = (
        picture(vars(item), seen)
        if hasattr(item, "__dict__") and not isinstance(item, type)
        else item
    )
    return (
        held,
        closure,
        slots,
        type(item).__name__ == "Storing" and picture(type(item).shared, seen),
    )


STORES: dict[str, Callable[[], Callable[[Any, Tensor], Any]]] = {
    "attribute": lambda: _assign,
    "buffers": lambda: _buffer,
    "rebound buffer": lambda: _rebound,
    "containers": lambda: _containers,
    "objects": lambda: _objects,
    "submodule": lambda: _submodule,
    "memory": lambda: _memory,
    "statistics": lambda: _statistics,
    "chance": lambda: _chance,
    "closure": _keeper,
}


@pytest.mark.parametrize("name", STORES)
def test_state_that_forward_stores_is_restored_after_tracing(name: str) -> None:
    torch.manual_seed(0)
    network = Storing(STORES[name]())
    state, python = torch.get_rng_state(), random.getstate()
    before = picture(network, set())
    trace(network, (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)),))
    assert picture(network, set()) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert "table" not in vars(Storing.forward)


@pytest.mark.parametrize("name", STORES)
def test_a_network_that_stores_tensors_can_be_trained_copied_and_saved_after_pruning(
    name: str,
) -> None:
    torch.manual_seed(0)
    network = Storing(STORES[name]())
    prune(network, SynFlow(), density=0.5, rounds=3, input_shape=(5, 8))
    if name not in ("closure", "chance"):  # neither a local function nor a generator can be pickled
        torch.save(copy.deepcopy(network), io.BytesIO())
    if name != "memory":  # a write to a weight in the forward pass makes the backward pass fail
        network(torch.randn(2, 5, 8)).sum().backward()
        assert network.first.weight.grad is not None


def test_state_that_forward_stores_is_restored_when_it_fails() -> None:
    def fail(module: Any, hidden: Tensor) -> None:
        _containers(module, hidden)
        _memory(module, hidden)
        raise RuntimeError("on purpose")

    network = Storing(fail)
    before = picture(network, set())
    with pytest.raises(ValueError, match="RuntimeError: on purpose"):
        trace(network, (torch.randn(2, 5, 8),))
    assert picture(network, set()) == before


def test_an_input_that_forward_writes_to_keeps_its_values() -> None:
    inputs = torch.randn(2, 8)
    before = inputs.clone()
    trace(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 2)), (inputs,))
    assert torch.equal(inputs, before)


def test_tensors_that_a_hook_collects_are_removed_after_tracing() -> None:
    network, features = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), list[Tensor]()
    network[0].register_forward_hook(lambda module, given, made: features.append(made))
    trace(network, (torch.randn(2, 8),))
    assert features == []


def test_every_traced_tensor_has_the_entries_that_it_was_computed_with() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            table = torch.zeros(4)
            first = table + 1
            table[1:3] = 5
            table.add_(1)
            return self.layer(x * table * first)

    graph = trace(Counting(), (torch.ones(1, 4),))
    for operation in graph.operations:
        given = [
            graph.tensors[item.number] if hasattr(item, "number") else item
            for item in operation.args
        ]
        output = operation.outputs[0]
        assert output is not None
        torch.testing.assert_close(
            operation.target(*given, **operation.kwargs), graph.tensors[output.number]
        )


def test_buffers_of_spectral_normalisation_are_unchanged_in_train_mode() -> None:
    network = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(8, 8)),
        nn.utils.spectral_norm(nn.Linear(8, 8)),
        nn.Linear(8, 2),
    )
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    masks = prune(network, SynFlow(), density=0.5, rounds=2, input_shape=(8,))
    diagnose(network, masks, input_shape=(8,))
    Compaction(network, masks, (torch.ones(1, 8),))
    masks.apply(network)
    assert network.training
    assert all(
        torch.equal(tensor, before[name])
        for name, tensor in network.state_dict().items()
        if name not in masks
    )


def test_a_value_is_the_output_of_one_operation_only() -> None:
    class Cache(nn.Module):
        """Begins with an empty tensor, as caches of transformers do."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.gate = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            cached = torch.cat([torch.tensor([]), self.layer(x)], -1)
            return (cached.softmax(-1) * self.gate(x)) @ cached.t()

    network = Cache()
    graph = trace(network, (torch.ones(2, 4),))
    made = [
        output.number
        for operation in graph.operations
        for output in operation.outputs
        if output is not None
    ]
    assert len(made) == len(set(made))
    masks = prune(network, SynFlow(), density=0.5, rounds=2, input_shape=(4,))
    assert diagnose(network, masks, input_shape=(4,)).alive


def test_a_network_that_creates_parameters_in_its_forward_pass_is_refused() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(4, 4), None

        def forward(self, x: Tensor) -> Tensor:
            if self.last is None:
                self.last = nn.Linear(4, 2)
            return self.last(self.layer(x))

    network = Late()
    with pytest.raises(
        ValueError,
        match=r"Late creates parameters in its first forward pass \(last.weight, last.bias\)",
    ):
        linearise(network, (torch.ones(1, 4),))
    assert network.last is None
