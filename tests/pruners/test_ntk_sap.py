from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from synflow_pl import prune
from synflow_pl.networks import ResNet
from synflow_pl.pruners import NTKSAP, PruningState
from tests.pruners.networks import scores, small


def test_ntk_sap_is_the_derivative_of_the_output_change_by_each_mask_entry() -> None:
    network, epsilon = small(), 0.01
    for layer in (network[0], network[2]):
        nn.init.zeros_(layer.bias)  # as NTKSAP initialises them
    masks = {"0.weight": torch.ones(4, 3, dtype=torch.bool)}
    masks["0.weight"][1, 2] = False
    found = scores(
        NTKSAP(images=6, epsilon=epsilon, seed=4), network, masks=masks, input_shape=(3,)
    )

    # Random numbers are drawn in the order images, weights, changes.
    generator = torch.Generator().manual_seed(4)
    names = ["0.weight", "2.weight"]
    images = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    weights = {
        n: nn.init.kaiming_normal_(
            torch.empty_like(network.get_parameter(n).data), generator=generator
        )
        for n in names
    }
    changes = {
        n: epsilon * torch.randn(weights[n].shape, dtype=torch.float64, generator=generator)
        for n in names
    }

    def moved(entries: dict[str, Tensor]) -> float:
        here = functional_call(network, {n: weights[n] * entries[n] for n in names}, (images,))
        there = functional_call(
            network, {n: (weights[n] + changes[n]) * entries[n] for n in names}, (images,)
        )
        return float((here - there).square().sum(1).mean())

    entries = {n: masks.get(n, torch.ones_like(weights[n])).double() for n in names}
    for name in names:
        for index in range(weights[name].numel()):
            up, down = ({n: entry.clone() for n, entry in entries.items()} for _ in range(2))
            up[name].view(-1)[index] += 1e-5
            down[name].view(-1)[index] -= 1e-5
            assert found[name].view(-1)[index].item() == pytest.approx(
                abs(moved(up) - moved(down)) / 2e-5, rel=1e-4, abs=1e-10
            )


def test_ntk_sap_does_not_depend_on_weights_or_running_statistics() -> None:
    network = ResNet(8, width=4)
    found = scores(NTKSAP(images=4, seed=1), network, input_shape=(3, 8, 8))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_()
        for buffer in network.buffers():
            buffer.fill_(3)
    again = scores(NTKSAP(images=4, seed=1), network, input_shape=(3, 8, 8))
    assert all(torch.equal(score, again[name]) for name, score in found.items())
    assert all(int(buffer.sum()) == 3 * buffer.numel() for buffer in network.buffers())
    assert all(
        module.momentum == 0.1 for module in network.modules() if isinstance(module, nn.BatchNorm2d)
    )


class EveryKind(nn.Module):
    """Network with parameters of many kinds that are not pruned.

    They are embeddings, gains, slopes, tokens, scales and recurrent weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.batch_norm, self.group_norm = nn.BatchNorm2d(6), nn.GroupNorm(2, 6)
        self.slope = nn.PReLU(6)
        self.scale = nn.Parameter(torch.full((6, 1, 1), 1e-6))
        self.token, self.position = (
            nn.Parameter(torch.zeros(1, 1, 6)),
            nn.Parameter(torch.zeros(1, 17, 6)),
        )
        self.attention, self.layer_norm = (
            nn.MultiheadAttention(6, 2, batch_first=True),
            nn.LayerNorm(6),
        )
        self.recurrent = nn.LSTM(6, 5, batch_first=True)
        self.table = nn.Embedding(4, 1)
        self.shift = nn.Parameter(torch.zeros(5))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))
        self.head = nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.slope(self.group_norm(self.batch_norm(self.stem(images)))) * self.scale
        tokens = (
            torch.cat([self.token.expand(len(images), -1, -1), maps.flatten(2).mT], 1)
            + self.position
        )
        tokens = self.layer_norm(tokens + self.attention(tokens, tokens, tokens)[0])
        last = self.recurrent(tokens)[0][:, -1] + self.table.weight.sum() + self.shift
        return self.head(self.normed(last).tanh())


@pytest.mark.parametrize("name", [name for name, _ in EveryKind().named_parameters()])
def test_ntk_sap_does_not_depend_on_any_parameter_of_the_network(name: str) -> None:
    network = EveryKind()
    found = scores(NTKSAP(images=4, seed=1), network, input_shape=(3, 4, 4))
    nn.init.normal_(network.get_parameter(name), 1.0, 2.0)
    again = scores(NTKSAP(images=4, seed=1), network, input_shape=(3, 4, 4))
    assert all(score.any() and torch.equal(score, again[key]) for key, score in found.items())


def test_ntk_sap_does_not_depend_on_the_weights_of_an_excluded_layer() -> None:
    networks = [
        nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        for _ in range(2)
    ]
    first, second = (
        prune(n, NTKSAP(seed=2), density=0.2, rounds=3, input_shape=(5,), exclude=["4.*"])
        for n in networks
    )
    assert all(torch.equal(first[name], mask) for name, mask in second.items())


def test_ntk_sap_takes_biases_and_shifts_as_zero_and_gains_as_one() -> None:
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    found = scores(NTKSAP(images=4, seed=1), network, input_shape=(2, 4, 4))
    started = copy.deepcopy(network)

    class Own(NTKSAP):
        def _others(self, state: PruningState, kind: Tensor) -> dict[str, Tensor]:
            return {}

    with torch.no_grad():
        for module in started.modules():
            if isinstance(getattr(module, "bias", None), Tensor):
                module.bias.zero_()
    again = scores(Own(images=4, seed=1), started, input_shape=(2, 4, 4))
    assert all(torch.equal(score, again[key]) for key, score in found.items())
    nn.init.constant_(started[1].weight, 0.5)
    assert not torch.equal(
        found["0.weight"], scores(Own(images=4, seed=1), started, input_shape=(2, 4, 4))["0.weight"]
    )


def test_scoring_with_ntk_sap_does_not_change_the_network() -> None:
    network = EveryKind()
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    scores(NTKSAP(images=4), network, input_shape=(3, 4, 4))
    assert all(
        torch.equal(before[name], parameter) for name, parameter in network.named_parameters()
    )


def test_ntk_sap_draws_new_weights_and_images_in_each_round() -> None:
    class Twice(NTKSAP):
        def score(self, state):  # type: ignore[no-untyped-def]
            first, second = super().score(state), super().score(state)
            assert not torch.equal(first["0.weight"], second["0.weight"])
            return second

    assert scores(Twice(images=4), small(), input_shape=(3,))


def test_impossible_options_of_ntk_sap_are_an_error() -> None:
    with pytest.raises(ValueError, match="images: 1 must be at least 2"):
        NTKSAP(images=1)
    with pytest.raises(ValueError, match=r"epsilon: 0\.0 must be positive"):
        NTKSAP(epsilon=0.0)
