"""Tests of weights that are used without their layer, twice, or inside a gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from synflow_pl import Compaction, prune
from synflow_pl.diagnosis import diagnose
from synflow_pl.flow import trace
from synflow_pl.pruners import SynFlow


class Layers(nn.Module):
    """Three linear layers and a function of them as forward pass."""

    def __init__(
        self,
        function: Callable[[Layers, Tensor], Tensor],
        middle: tuple[int, int] = (16, 16),
        last: int = 16,
    ) -> None:
        super().__init__()
        self.a, self.b, self.c, self.function = (
            nn.Linear(8, 16),
            nn.Linear(*middle),
            nn.Linear(last, 4),
            function,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def energy(network: Layers, x: Tensor) -> Tensor:
    """Return a function of a gradient by the input, as in models of forces."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (force,) = torch.autograd.grad(network.b(network.a(x).tanh()).sum(), x, create_graph=True)
    return network.c(force)


def guarded(network: Layers, x: Tensor) -> Tensor:
    with torch.inference_mode():
        gate = network.b(network.a(x)).sigmoid()
    return network.c(network.a(x) * gate.clone())


def tied(network: Layers, x: Tensor) -> Tensor:
    transposed = network.a.weight.t()
    return network.c(((x @ transposed).relu() @ transposed.t()).relu())


def repeated(network: Layers, x: Tensor) -> Tensor:
    transposed = network.b.weight.t()
    return network.c(((network.a(x) @ transposed).relu() @ transposed).relu())


NETWORKS: dict[str, Callable[[], Layers]] = {
    "an untransposed weight": lambda: Layers(
        lambda n, x: n.c((n.a(x).relu() @ n.b.weight).relu()), (24, 16), 24
    ),
    "transposed twice": lambda: Layers(
        lambda n, x: n.c((n.a(x).relu() @ n.b.weight.t().t()).relu()), (24, 16), 24
    ),
    "a weight and its transpose": lambda: Layers(tied, last=8),
    "one transpose used twice": lambda: Layers(repeated),
    "a gradient": lambda: Layers(energy, (16, 1), 8),
    "inference mode": lambda: Layers(guarded),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_compaction_keeps_the_function_however_weights_are_multiplied(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    masks = prune(network, SynFlow(), density=0.3, rounds=4, input_shape=(8,))
    assert diagnose(network, masks, input_shape=(8,)).alive
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.normal_()
    network.double()
    compaction = Compaction(network, masks, (torch.ones(1, 8, dtype=torch.float64),))
    assert not any("nothing was taken out" in note for note in compaction.notes)
    x = torch.randn(5, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(compaction.network(x), network(x), rtol=1e-10, atol=1e-10)


def test_a_forward_pass_with_meta_tensors_is_an_error() -> None:
    network = Layers(
        lambda n, x: n.c(sum(torch.func.jvp(lambda y: n.a(y).tanh(), (x,), (torch.ones_like(x),))))
    )
    masks = prune(network, SynFlow(), density=0.3, rounds=2, input_shape=(8,))
    with pytest.raises(
        ValueError, match=r"^Layers\.forward computes with tensors on the meta device"
    ):
        Compaction(network, masks, (torch.ones(1, 8),))


def test_a_traced_operation_names_the_innermost_module_that_runs() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    network = nn.Sequential(inner, nn.Sequential(inner, nn.Linear(4, 2)))
    names = [
        operation.module
        for operation in trace(network, (torch.ones(1, 4),)).operations
        if operation.name in ("addmm", "relu")
    ]
    assert names == ["0.0", "0.1", "0.0", "0.1", "1.1"]


def test_conversions_and_writes_are_not_named_as_operations_without_a_formula() -> None:
    def lowered(network: Layers, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = network.b(network.a(x)).float()
        picked = torch.zeros_like(hidden)
        picked[torch.tensor([0])] = hidden
        return network.c(picked)

    network = Layers(lowered)
    masks = prune(network, SynFlow(), density=0.5, rounds=2, input_shape=(8,))
    assert not any(
        note.startswith("FLOPs leave out")
        for note in diagnose(network, masks, input_shape=(8,)).notes
    )
