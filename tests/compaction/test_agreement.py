"""Tests of the comparison with the whole network: on the example, on noise and in train mode."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synflow_pl import Compaction, Masks, compact
from synflow_pl.prunable_parameters import prunable

# -- inputs


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        h = self.a(x).relu()
        return self.b(torch.zeros_like(h).index_add(0, target, h[source]))


class Selected(Graph):
    def forward(self, x: Tensor, nodes: Tensor) -> Tensor:
        return self.b(self.a(x).relu().index_select(0, nodes))


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.step = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 3, 3), nn.Linear(1, 16)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        return self.b(
            F.silu(self.a(x) + self.step(step.to(x.dtype).reshape(-1, 1))[..., None, None])
        )


class Masked(Graph):
    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.b(h.masked_fill(~present[:, None], 0).sum(0) / present.sum())


class Logarithm(Graph):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.log()).relu())


class Packed(Graph):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if lengths.shape[0] != 2:
            raise KeyError("lengths")
        return self.b(self.a(x).relu()) * lengths.view(-1, 1)


INPUTS: dict[str, tuple[type[nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "edges of a graph": (Graph, lambda: (torch.randn(7, 6), torch.randint(7, (2, 11)))),
    "selected nodes": (Selected, lambda: (torch.randn(7, 6), torch.tensor([2, 5]))),
    "a step without dimensions": (Denoiser, lambda: (torch.randn(1, 3, 8, 8), torch.tensor(5))),
    "a step for each image": (Denoiser, lambda: (torch.randn(2, 3, 8, 8), torch.tensor([5, 9]))),
    "a mask": (Masked, lambda: (torch.randn(7, 6), torch.arange(7) < 4)),
    "positive numbers": (Logarithm, lambda: (torch.rand(2, 6) + 0.1,)),
    "a batch of exactly two": (Packed, lambda: (torch.randn(2, 6), torch.tensor([3, 1]))),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", INPUTS)
def test_networks_with_inputs_of_many_kinds_are_compacted(kind: str, training: bool) -> None:
    torch.manual_seed(0)
    build, give = INPUTS[kind]
    network, inputs = build().eval(), give()
    masks = {
        name: torch.ones_like(weight, dtype=torch.bool)
        for name, weight in prunable(network).items()
    }
    masks["b.weight"][:, ::2] = False
    compaction = Compaction(network, Masks(masks), inputs, training=training)
    assert compaction.network.a.weight.shape[0] == 8
    Masks(masks).apply(network)
    torch.testing.assert_close(compaction.network(*inputs), network(*inputs), rtol=1e-4, atol=1e-5)


def test_a_network_for_one_batch_size_is_compared_at_that_size_and_a_note_says_so() -> None:
    class Fixed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).view(2, 4)

    network = Fixed(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    masks = Masks(
        {
            "0.weight": torch.ones(16, 8, dtype=torch.bool),
            "2.weight": torch.arange(16).expand(4, 16) < 10,
        }
    )
    compaction = Compaction(network, masks, (torch.randn(2, 8),))
    assert compaction.network[0].out_features == 10
    assert compaction.notes[-1].startswith(
        "outputs were compared at the example's batch size alone, since with twice as many"
        " Fixed.forward fails"
    )


def test_a_network_that_fixes_a_precision_is_compared_in_that_precision() -> None:
    class Half(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) @ torch.ones(4, 2, dtype=torch.float32)

    torch.manual_seed(0)
    network = Half(nn.Linear(8, 16), nn.Softplus(), nn.Linear(16, 4)).eval()
    masks = Masks(
        {
            "0.weight": torch.ones(16, 8, dtype=torch.bool),
            "2.weight": torch.arange(16).expand(4, 16) < 10,
        }
    )
    compaction = Compaction(network, masks, (torch.ones(1, 8),))
    assert compaction.network[0].out_features == 10


def test_rounding_to_single_precision_inside_a_network_is_tolerated() -> None:
    class Rounded(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[2](self[1](self[0](x)).float().to(x.dtype)).float().softmax(1)

    torch.manual_seed(0)
    network = Rounded(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 4)).eval()
    masks = {
        name: torch.ones_like(weight, dtype=torch.bool)
        for name, weight in prunable(network).items()
    }
    masks["0.weight"][::2] = False
    assert compact(network, Masks(masks), torch.ones(1, 8))[0].out_features == 32


# -- train mode

Give = Callable[["Trained", Tensor, Tensor], Any]


class Trained(nn.Module):
    """A network that in train mode returns ``give(network, hidden, output)``.

    The module ``noise`` is applied to the hidden layer.
    """

    def __init__(self, give: Give, noise: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.norm, self.noise = nn.Linear(8, 32), nn.BatchNorm1d(32), noise or nn.Identity()
        self.b, self.aux, self.give = nn.Linear(32, 4), nn.Linear(32, 4), give

    def forward(self, x: Tensor) -> Any:
        h = self.noise(self.norm(self.a(x)).relu())
        return self.give(self, h, self.b(h)) if self.training else self.b(h)


def half_read(network: nn.Module) -> Masks:
    masks = {
        name: torch.ones_like(weight, dtype=torch.bool)
        for name, weight in prunable(network).items()
    }
    masks["b.weight"][:, ::2] = False
    return Masks(masks)


def trained(give: Give, noise: nn.Module | None = None) -> Compaction:
    torch.manual_seed(0)
    network = Trained(give, noise)
    return Compaction(network, half_read(network), (torch.ones(1, 8),), training=True)


@pytest.mark.parametrize(
    "give",
    [
        lambda n, h, y: (y, h),
        lambda n, h, y: {"scores": y, "parts": [h > 1]},
        lambda n, h, y: (y, h.pow(2).mean()),
        lambda n, h, y: y + n.aux(h),
        lambda n, h, y: F.normalize(h) @ F.normalize(h).T,
    ],
    ids=["features", "booleans in a dict", "a loss", "an auxiliary head", "a contrastive product"],
)
def test_nothing_is_removed_if_an_output_in_train_mode_would_change(give: Give) -> None:
    compaction = trained(give)
    assert compaction.notes[0].startswith("nothing was taken out: ")
    assert compaction.network.a.out_features == 32


def test_units_are_removed_if_a_loss_in_train_mode_does_not_read_them() -> None:
    assert trained(lambda n, h, y: (y, y.pow(2).mean())).network.a.out_features == 16


def test_an_output_in_train_mode_of_an_unknown_type_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"compaction cannot look into output\[1\] of Trained.forward"
    ):
        trained(lambda n, h, y: (y, lambda: h))


def test_nothing_is_removed_from_a_network_that_branches_on_values_in_train_mode() -> None:
    (note,) = trained(lambda n, h, y: y if y.sum() < 100 else y + n.aux(h)).notes
    assert note.startswith(
        "nothing was taken out: in train mode, Trained.forward reads values of tensors"
        " (aten::_local_scalar_dense)"
    )


def test_nothing_is_removed_from_a_network_that_fails_in_train_mode() -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("targets")

    assert trained(fail).notes == (
        "nothing was taken out: in train mode, Trained.forward fails ('targets')",
    )


class Own(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return self.draw(x) if self.training else x


NOISE: dict[str, nn.Module] = {
    "dropout": nn.Dropout(0.5),
    "functional dropout": Own(lambda x: F.dropout(x, 0.3, True)),
    "alpha dropout": nn.AlphaDropout(0.5),
    "stochastic depth": Own(lambda x: x * x.new_empty(len(x), 1).bernoulli_(0.8).div_(0.8)),
    "added noise": Own(lambda x: x + torch.randn_like(x) / 10),
    "multiplied noise": Own(lambda x: x * (1 + torch.randn(x.shape) / 10)),
    "uniform noise": Own(lambda x: x + torch.empty_like(x).uniform_(-1, 1)),
    "a shuffled batch": Own(lambda x: (x + x[torch.randperm(len(x))]) / 2),
    "Python's random numbers": Own(lambda x: x * 2 if random.random() < 0.5 else x),
}


@pytest.mark.parametrize("kind", NOISE)
def test_noise_in_train_mode_is_not_a_difference(kind: str) -> None:
    states = torch.get_rng_state(), random.getstate()
    compaction = trained(lambda n, h, y: y, NOISE[kind])
    assert compaction.network.a.out_features == 16
    assert random.getstate() == states[1]


def test_nothing_is_removed_if_the_noise_of_removed_units_reaches_the_output() -> None:
    # Half of the hidden units are zero without noise, but in training the last layer reads their
    # noise.
    network = nn.Sequential(
        nn.Linear(8, 32, bias=False), Own(lambda x: x + torch.randn_like(x)), nn.Linear(32, 4)
    )
    masks = {
        name: torch.ones_like(weight, dtype=torch.bool)
        for name, weight in prunable(network).items()
    }
    masks["0.weight"][::2] = False
    compaction = Compaction(network, Masks(masks), (torch.ones(1, 8),), training=True)
    assert compaction.network[0].out_features == 32
    assert "in train mode" in compaction.notes[0]
