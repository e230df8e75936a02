"""Losses of (outputs, labels) and of (network, batch), without Lightning."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

from synflow_pl import prune
from synflow_pl.pruners import FORCE, SNIP, GraSP, Pruner

PRUNERS: list[Callable[[], Pruner]] = [SNIP, GraSP, FORCE]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3)
    )


def pairs() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator))
        for n in (10, 4)
    ]


def masks_of(pruner: Pruner, batches: Any, loss: Any, net: nn.Module | None = None) -> Any:
    return prune(
        net or network(),
        pruner,
        density=0.3,
        rounds=3,
        batches=batches,
        loss=loss,
        example_input=torch.ones(1, 6),
    )


@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_loss_of_network_and_batch_gives_the_masks_of_the_loss_of_outputs(
    pruner: Callable[[], Pruner],
) -> None:
    right = masks_of(pruner(), pairs(), cross_entropy)
    dictionaries = [{"x": x, "nested": [y]} for x, y in pairs()]
    masks = masks_of(
        pruner(),
        dictionaries,
        lambda network, batch: cross_entropy(network(batch["x"]), batch["nested"][0]),
    )
    assert all(torch.equal(masks[name], right[name]) for name in right)


def test_the_name_of_the_second_parameter_decides_what_a_loss_takes() -> None:
    def of_batch(anything: nn.Module, batch: Any) -> Tensor:
        assert isinstance(anything, nn.Module)
        return cross_entropy(anything(batch[0]), batch[1])

    def of_outputs(batch: Tensor, labels: Tensor) -> Tensor:
        assert isinstance(batch, Tensor)
        return cross_entropy(batch, labels)

    one, other = (masks_of(SNIP(), pairs(), loss) for loss in (of_batch, of_outputs))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("loss", [nn.MSELoss, "mse", 3, lambda batch: batch])
def test_a_loss_that_does_not_take_two_arguments_is_refused(loss: Any) -> None:
    with pytest.raises(TypeError, match=r"^loss: .* must be a module or function of two arguments"):
        masks_of(SNIP(), pairs(), loss)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "give batches=, a list of batches; got none"),
        (iter([{"x": torch.ones(1, 6)}]), "a list of batches; got a list_iterator"),
        ([{"x": torch.ones(0, 6)}], "there are no examples in these"),
    ],
)
def test_batches_without_examples_are_refused(batches: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masks_of(SNIP(), batches, lambda network, batch: network(batch["x"]).mean())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda network, batch: network(batch[0]), r"a tensor of shape \(10, 3\) for batch 0"),
        (lambda network, batch: None, "a NoneType for batch 0, not one number"),
        (lambda network, batch: torch.tensor(1.0), "every score of SNIP is zero"),
    ],
)
def test_a_loss_that_is_no_number_of_the_network_is_refused(loss: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masks_of(SNIP(), pairs(), loss)


@pytest.mark.parametrize("pruner", PRUNERS)
def test_random_numbers_of_a_loss_depend_on_the_batch_only(pruner: Callable[[], Pruner]) -> None:
    def noisy(network: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(network(batch[0] + torch.randn(6) + random.random()), batch[1])

    found = []
    for seed in (1, 2):
        net = network()
        torch.manual_seed(seed)
        random.seed(seed)
        state = torch.get_rng_state(), random.getstate()
        found.append(masks_of(pruner(), pairs(), noisy, net))
        assert torch.equal(torch.get_rng_state(), state[0])
        assert random.getstate() == state[1]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


class Counting(nn.Module):
    """Network that counts and averages its outputs in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()
        self.register_buffer("mean", torch.zeros(3))
        self.plain, self.calls, self.shapes = torch.zeros(3), 0, []

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        self.mean.lerp_(y.detach().mean(0), 0.5)
        self.plain += y.detach().mean(0)
        self.calls += 1
        self.shapes.append(x.shape)
        return y + self.mean


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("train_mode", [False, True])
def test_scoring_by_a_function_leaves_the_network_as_it_was(
    pruner: Callable[[], Pruner], train_mode: bool
) -> None:
    net = Counting()
    dense = copy.deepcopy(net.state_dict())
    masks = prune(
        net,
        pruner(),
        density=0.3,
        rounds=2,
        batches=pairs(),
        train_mode=train_mode,
        loss=lambda network, batch: cross_entropy(network(batch[0]), batch[1]),
        on_collapse="ignore",
    )
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, dense[name] * masks[name] if name in masks else dense[name])
    assert not bool(net.plain.any())
    assert (net.calls, net.shapes) == (0, [])
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.training


class Recomputed(nn.Module):
    """Network whose hidden layers run again when gradients are computed."""

    def __init__(self, recompute: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.recompute = recompute
        self.first = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.first, x, use_reentrant=False) if self.recompute else self.first(x)
        logits: Tensor = self.last(hidden)
        return logits


@pytest.mark.parametrize("pruner", [SNIP, FORCE])
@pytest.mark.parametrize(
    "loss", [cross_entropy, lambda network, batch: cross_entropy(network(batch[0]), batch[1])]
)
def test_parts_that_run_again_for_gradients_use_the_weights_of_the_round(
    pruner: Callable[[], Pruner], loss: Any
) -> None:
    plain, again = (masks_of(pruner(), pairs(), loss, Recomputed(flag)) for flag in (False, True))
    assert all(torch.equal(plain[name], again[name]) for name in plain)


class Tied(nn.Module):
    """Network whose first and last layers share a weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(6, 5, bias=False), nn.Linear(6, 5, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x).tanh() @ self.decoder.weight


@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_shared_weight_gets_the_gradients_of_all_its_uses(pruner: Callable[[], Pruner]) -> None:
    right = masks_of(pruner(), [(x, x) for x, _ in pairs()], mse_loss, Tied())
    masks = masks_of(
        pruner(), pairs(), lambda network, batch: mse_loss(network(batch[0]), batch[0]), Tied()
    )
    assert torch.equal(masks["encoder.weight"], right["encoder.weight"])


def test_a_packed_sequence_is_a_batch() -> None:
    class Sequences(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, packed: Any) -> Tensor:
            logits: Tensor = self.head(self.embed(packed.data).relu())
            return logits

    packed = pack_sequence([torch.randn(5, 6), torch.randn(2, 6)])
    masks = prune(
        Sequences(),
        SNIP(),
        density=0.5,
        batches=[packed],
        loss=lambda network, batch: network(batch).square().mean(),
        on_collapse="ignore",
    )
    assert masks.kept == masks.total // 2


def test_a_network_of_other_outputs_is_scored_by_a_function() -> None:
    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.layer(x)
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    torch.manual_seed(0)
    net = Outputs()
    right = masks_of(SNIP(), pairs(), cross_entropy, copy.deepcopy(net.layer))
    masks = masks_of(
        SNIP(),
        [{"x": x, "labels": y} for x, y in pairs()],
        lambda network, batch: network(**batch)["loss"],
        net,
    )
    assert torch.equal(masks["layer.weight"], right["weight"])
