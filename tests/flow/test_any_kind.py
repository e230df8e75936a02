"""Small networks of each kind: scores are those of the positive network, flow is conserved."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synflow_pl import prune
from synflow_pl.flow import example_of, is_connected, linearise
from synflow_pl.prunable_parameters import prunable
from synflow_pl.pruners import SynFlow
from tests.flow.at_cuts import conservation_error


class Shared(nn.Module):
    """One kernel under two names, applied twice as a module and once as a function's argument."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.again = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.again.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(self.again(self.first(images).relu()), self.first.weight)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)
        self.head = nn.Linear(8, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(left).relu(), self.right(right).relu()], 1))


def chain(*layers: nn.Module) -> Callable[[], nn.Module]:
    """Return a function that builds the layers with a ReLU between any two."""
    return lambda: nn.Sequential(
        *[part for layer in copy.deepcopy(layers) for part in (layer, nn.ReLU())][:-1]
    )


POSITIVE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "grouped": (
        chain(nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 3, 1)),
        (4, 6, 6),
    ),
    "sequence": (
        chain(nn.Conv1d(2, 4, 3, padding=1), nn.MaxPool1d(2), nn.Conv1d(4, 2, 3)),
        (2, 12),
    ),
    "volume": (
        chain(nn.Conv3d(1, 3, 2), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(3, 2)),
        (1, 3, 3, 3),
    ),
    "transposed": (
        chain(
            nn.Conv2d(3, 4, 3, stride=2),
            nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
            nn.Conv2d(6, 2, 1),
        ),
        (3, 7, 7),
    ),
    "shared": (Shared, (3, 5, 5)),
}


@pytest.mark.parametrize("name", POSITIVE)
def test_gradients_equal_those_of_the_positive_network(name: str) -> None:
    build, shape = POSITIVE[name]
    network = build().double()
    linear_network = linearise(network, example_of(network, shape, None))
    linear_network._cut_before = {}
    weights = {key: parameter.detach().abs() for key, parameter in prunable(network).items()}
    positive = copy.deepcopy(network)
    for key, parameter in positive.named_parameters():
        parameter.data = (
            torch.zeros_like(parameter) if key.endswith("bias") else parameter.data.abs()
        )
    positive(torch.ones(1, *shape, dtype=torch.float64)).sum().backward()
    for key, gradient in linear_network.gradients(weights).items():
        torch.testing.assert_close(gradient, positive.get_parameter(key).grad, rtol=1e-12, atol=0)


def test_a_module_under_two_names_is_unchanged() -> None:
    layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network = nn.Sequential(layer, layer)
    weight, mean = layer[0].weight, layer[1].running_mean
    linear_network = linearise(network, example_of(network, (2,), None))
    assert layer[0].weight is weight
    assert layer[1].running_mean is mean
    assert linear_network.weights == {"0.0.weight"}


def test_flow_starts_at_every_input() -> None:
    network = TwoInputs()
    linear_network = linearise(network, (torch.zeros(1, 3), torch.zeros(1, 2)))
    gradients = linear_network.gradients(
        {name: torch.ones_like(parameter) for name, parameter in prunable(network).items()}
    )
    assert all(bool((gradient > 0).all()) for gradient in gradients.values())


class Words(nn.Module):
    """Takes integers, through an embedding that shares its weight with the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.layer, self.head = (
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
            nn.Linear(4, 10, bias=False),
        )
        self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(words)))


def test_flow_starts_at_the_output_of_an_embedding() -> None:
    network = Words()
    masks = prune(
        network,
        SynFlow(),
        density=0.3,
        rounds=10,
        example_input=torch.zeros(1, 3, dtype=torch.int64),
    )
    assert "head.weight" not in masks  # shared with the embedding
    assert is_connected(network, masks, (torch.zeros(1, 3, dtype=torch.int64),))


class Standardised(nn.Conv2d):
    """A convolution whose kernel is standardised before it is used, as in NFNets and BiT."""

    def forward(self, images: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True
        ).reshape_as(self.weight)
        return self._conv_forward(images, weight, self.bias)


class Mixed(nn.Module):
    """Class token, position embeddings, attention, rolling, merging and shuffling of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 2, stride=2), nn.GroupNorm(2, 8)
        self.token, self.places = (
            nn.Parameter(torch.randn(1, 1, 8)),
            nn.Parameter(torch.randn(1, 10, 8)),
        )
        self.block = nn.TransformerEncoderLayer(
            8, 2, 16, activation="gelu", batch_first=True, norm_first=True
        )
        self.merge, self.head = nn.Linear(16, 4), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.full((8,), 1e-6))

    def forward(self, images: Tensor) -> Tensor:
        signal = F.channel_shuffle(self.norm(self.stem(images)), 2).roll((1, 1), (2, 3))
        tokens = signal.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1) + self.places
        tokens = tokens + self.scale * self.block(tokens)
        merged = self.merge(torch.cat([tokens[:, 0::2], tokens[:, 1::2]], -1))
        return self.head(torch.cat([merged.mean(1), merged[:, 0]], -1))


KINDS = POSITIVE | {
    "instance norm": (
        chain(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.SiLU(), nn.Conv2d(4, 2, 1)),
        (3, 5, 5),
    ),
    "layer norm": (
        chain(
            nn.Linear(3, 8),
            nn.LayerNorm(8),
            nn.GELU(),
            nn.Dropout(),
            nn.Linear(8, 8),
            nn.RMSNorm(8),
            nn.Linear(8, 2),
        ),
        (3,),
    ),
    "standardised": (
        chain(Standardised(3, 6, 3), Standardised(6, 6, 3), nn.Conv2d(6, 2, 1)),
        (3, 7, 7),
    ),
    "mixed": (Mixed, (3, 6, 6)),
    "frozen": (chain(nn.Linear(4, 6).requires_grad_(False), nn.Hardswish(), nn.Linear(6, 2)), (4,)),
}


@pytest.mark.parametrize("name", KINDS)
def test_flow_is_conserved_the_density_is_exact_and_the_network_stays_connected(name: str) -> None:
    build, shape = KINDS[name]
    network, pruner = build(), SynFlow()
    linear_network = linearise(network, example_of(network, shape, None))
    weights = {
        key: parameter.detach().abs().double() for key, parameter in prunable(network).items()
    }
    assert linear_network.weights == weights.keys()
    assert conservation_error(linear_network, weights) < 1e-12
    note = (
        "removed weights are not zero in the kernel that is computed from them (standardised"
        " weights): 0.weight, 2.weight"
    )
    assert linear_network.notes == ((note,) if name == "standardised" else ())
    masks = prune(network, pruner, density=0.3, rounds=20, input_shape=shape)
    assert masks.kept == -(-3 * masks.total // 10)
    assert is_connected(network, masks, example_of(network, shape, None))


def test_a_class_token_receives_flow_through_attention() -> None:
    network = Mixed()
    linear_network = linearise(network, example_of(network, (3, 6, 6), None))
    gradients = linear_network.gradients(
        {name: torch.ones_like(parameter) for name, parameter in prunable(network).items()}
    )
    # The head's right half reads the first merged token, half of which is the class token.
    assert bool((gradients["head.weight"] > 0).all())
    rows = gradients["block.self_attn.in_proj_weight"] > 0
    assert not bool(rows[:16].any())
    assert bool(rows[16:].all())
