"""A network counts as connected where its output depends on its input.

The networks multiply signals and compute weights from others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synflow_pl import Masks, diagnose, prune
from synflow_pl.prunable_parameters import prunable
from synflow_pl.pruners import SynFlow


class Net(nn.Module):
    """Two layers whose outputs are combined, and a third one."""

    def __init__(
        self,
        meet: Callable[[Net, Tensor], Tensor],
        bias: bool = True,
        gate_bias: bool = True,
        out: int = 3,
    ) -> None:
        super().__init__()
        self.meet = meet
        self.a, self.b, self.head = (
            nn.Linear(4, out, bias=bias),
            nn.Linear(4, 3, bias=gate_bias),
            nn.Linear(3, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.meet(self, x))


class Attention(nn.Module):
    def __init__(self, weights: bool, bias: bool) -> None:
        super().__init__()
        self.attention, self.head, self.weights = (
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.Linear(4, 2),
            weights,
        )
        if bias:
            nn.init.normal_(self.attention.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=self.weights)[0])


class Styled(nn.Module):
    """A kernel that is scaled for each image, as in StyleGAN 2."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.kernel = nn.Conv2d(2, 3, 1, bias=bias), nn.Conv2d(3, 3, 1)
        self.style, self.head = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.kernel.weight[None] * self.style(x.mean((2, 3)))[:, None, :, None, None]
        signal = self.first(x)
        made = F.conv2d(
            signal.reshape(1, -1, *x.shape[2:]), weight.reshape(-1, 3, 1, 1), groups=len(x)
        )
        return self.head(made.view(len(x), 3, *x.shape[2:]).mean((2, 3)))


class Hyper(nn.Module):
    """A matrix that is scaled by the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w, self.s, self.head = (
            nn.Linear(4, 3),
            nn.Linear(3, 3),
            nn.Linear(4, 3),
            nn.Linear(3, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.w.weight * self.s(x)[:, None, :] @ self.a(x)[:, :, None])[:, :, 0])


class Computed(nn.Module):
    """A layer whose weight is computed from a parameter."""

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.std, self.head, self.compute = (
            nn.Linear(4, 3),
            nn.Linear(3, 3),
            nn.Linear(3, 2),
            compute,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(self.first(x), self.compute(self.std.weight), self.std.bias))


def by_hand(w: Tensor) -> Tensor:
    return (w - w.mean(1, keepdim=True)) / (w.var(1, keepdim=True) + 1e-5).sqrt()


def by_moments(w: Tensor) -> Tensor:
    variance, mean = torch.var_mean(w, 1, keepdim=True)
    return (w - mean) * torch.rsqrt(variance + 1e-5)


def by_batch_norm(w: Tensor) -> Tensor:
    return F.batch_norm(w.reshape(1, len(w), -1), None, None, training=True).reshape_as(w)


UNEVEN: dict[str, Callable[[Tensor], Tensor]] = {
    "by hand": by_hand,
    "by moments": by_moments,
    "by batch norm": by_batch_norm,
    "by layer norm": lambda w: F.layer_norm(w, w.shape[1:]),
    "over units": lambda w: w - w.mean(0, keepdim=True),
    "sigmoid": torch.sigmoid,
    "softmax": lambda w: w.softmax(1),
}
EVEN: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": lambda w: w / (1e-3 + w.norm()),
    "rounded": lambda w: (w * 64).round() / 64,
    "tanh": torch.tanh,
    "transposed": lambda w: w.t(),
}
MEETINGS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "sigmoid": (lambda: Net(lambda m, x: m.a(x) * m.b(x).sigmoid()), (4,)),
    "sigmoid, no bias": (lambda: Net(lambda m, x: m.a(x) * m.b(x).sigmoid(), bias=False), (4,)),
    "tanh": (lambda: Net(lambda m, x: m.a(x) * m.b(x).tanh()), (4,)),
    "tanh, no bias of the gate": (
        lambda: Net(lambda m, x: m.a(x) * m.b(x).tanh(), gate_bias=False),
        (4,),
    ),
    "silu": (lambda: Net(lambda m, x: m.a(x) * F.silu(m.b(x))), (4,)),
    "glu": (lambda: Net(lambda m, x: F.glu(m.a(x)), out=6), (4,)),
    "quotient": (lambda: Net(lambda m, x: m.a(x) / (1 + m.b(x).exp())), (4,)),
    "sum and product": (
        lambda: Net(lambda m, x: torch.addcmul(x[..., :3], m.a(x), m.b(x).sigmoid())),
        (4,),
    ),
    "product": (lambda: Net(lambda m, x: m.a(x) * m.b(x), bias=False), (4,)),
    "attention": (lambda: Attention(False, True), (3, 4)),
    "attention, weights asked for": (lambda: Attention(True, True), (3, 4)),
    "attention, no biases": (lambda: Attention(False, False), (3, 4)),
    "attention, weights asked for, no biases": (lambda: Attention(True, False), (3, 4)),
    "styled kernel": (lambda: Styled(True), (2, 2, 2)),
    "styled kernel, no bias": (lambda: Styled(False), (2, 2, 2)),
    "scaled matrix": (Hyper, (4,)),
} | {
    f"weight {name}": (lambda compute=compute: Computed(compute), (4,))
    for name, compute in (UNEVEN | EVEN).items()
}


@pytest.mark.parametrize("name", MEETINGS)
def test_a_network_is_connected_exactly_if_its_output_depends_on_its_input(name: str) -> None:
    build, shape = MEETINGS[name]
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        network = build().double().eval()
        density = (0.1, 0.2, 0.4)[seed % 3]
        masks = Masks({key: torch.rand(p.shape) < density for key, p in prunable(network).items()})
        diagnosis = diagnose(network, masks, input_shape=shape)
        masks.apply(network)
        with torch.no_grad():
            made = network(torch.randn(16, *shape).double())
        moves = float((made - made[0]).abs().max()) > 1e-9 * float(made.abs().max())
        assert diagnosis.alive == moves
        # The diagnosis is the same before and after the masks are applied.
        assert diagnose(network, masks, input_shape=shape).effective == diagnosis.effective
        seen.add(moves)
    assert seen == {True, False}


@pytest.mark.parametrize("name", UNEVEN)
def test_a_weight_whose_pruned_entries_become_nonzero_is_named(name: str) -> None:
    pruner = SynFlow()
    prune(Computed(UNEVEN[name]), pruner, density=0.5, rounds=2, input_shape=(4,))
    assert any(
        "removed weights are not zero in the kernel" in note and note.endswith(": std.weight")
        for note in pruner.notes
    )


@pytest.mark.parametrize("name", EVEN)
def test_a_weight_whose_zeros_stay_zeros_is_not_named(name: str) -> None:
    pruner = SynFlow()
    prune(Computed(EVEN[name]), pruner, density=0.5, rounds=2, input_shape=(4,))
    assert not any("removed weights" in note for note in pruner.notes)


def test_a_gate_of_a_masked_bias_is_not_connected() -> None:
    torch.manual_seed(0)
    network = Net(lambda m, x: m.a(x) * m.b(x).sigmoid())
    rows: dict[str, Any] = {
        "a.weight": torch.zeros(3, 4),
        "b.weight": torch.ones(3, 4),
        "head.weight": torch.ones(2, 3),
    }
    masks = {name: mask.bool() for name, mask in rows.items()}
    assert diagnose(network, Masks(masks), input_shape=(4,)).alive
    assert not diagnose(
        network,
        Masks({**masks, "a.bias": torch.zeros(3, dtype=torch.bool)}, ["a.bias"]),
        input_shape=(4,),
    ).alive
