from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from synflow_pl import prune
from synflow_pl.flow import example_of, is_connected, linearise
from synflow_pl.networks import FC, VGG, Conv, ResNet
from synflow_pl.prunable_parameters import prunable
from synflow_pl.pruners import PHEW
from synflow_pl.pruners.layer_graph import LayerGraph, layer_graph
from synflow_pl.pruners.random_walks import WeightedChoice


class Joined(nn.Module):
    """Network with a grouped convolution, concatenation and a flattened linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False)
        self.fc = nn.Linear(10 * 4, 3, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        first = self.stem(images).relu()
        both = torch.cat([first, self.grouped(first).relu()], 1)
        return self.fc(nn.functional.avg_pool2d(both, 2).flatten(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "fc": (lambda: FC((1, 4, 4), width=12), (1, 4, 4)),
    "conv": (lambda: Conv((1, 8, 8)), (1, 8, 8)),
    "resnet": (lambda: ResNet(8, width=4), (3, 8, 8)),
    "joined": (Joined, (2, 4, 4)),
}


def graph_of(network: nn.Module, shape: tuple[int, ...]) -> LayerGraph:
    layers = {name: parameter.detach() for name, parameter in prunable(network).items()}
    return layer_graph(linearise(network, example_of(network, shape, None)), layers)


def on_a_path(
    network: nn.Module, masks: dict[str, Tensor], shape: tuple[int, ...]
) -> dict[str, Tensor]:
    linear_network = linearise(network, example_of(network, shape, None))
    return {
        name: g > 0
        for name, g in linear_network.gradients(
            {n: m.double() for n, m in masks.items()}, gains=False
        ).items()
    }


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=20, deadline=None)
@given(exponent=st.floats(0.0, 1.0), seed=st.integers(0, 99))
def test_every_weight_that_phew_keeps_lies_on_a_path(name: str, exponent: float, seed: int) -> None:
    build, shape = NETWORKS[name]
    network = build()
    total = sum(parameter.numel() for parameter in prunable(network).values())
    # From all weights to about two paths.
    kept = max(round(total ** (1 - exponent) * 12**exponent), 12)
    masks = prune(network, PHEW(seed), num_kept=kept, input_shape=shape)
    assert masks.kept == kept
    used = on_a_path(network, dict(masks), shape)
    assert all(not (mask & ~used[layer]).any() for layer, mask in masks.items())


def test_phew_keeps_one_walk_if_there_are_as_many_weights_as_layers() -> None:
    network = FC((1, 4, 4), depth=5, width=12)
    masks = prune(network, PHEW(), num_kept=5, input_shape=(1, 4, 4))
    assert [int(mask.sum()) for mask in masks.values()] == [1] * 5
    assert is_connected(network, masks, example_of(network, (1, 4, 4), None))


def test_phew_keeps_the_beginning_of_a_walk_if_there_are_fewer_weights_than_layers() -> None:
    masks = prune(FC((1, 4, 4), depth=5, width=12), PHEW(), num_kept=3, input_shape=(1, 4, 4))
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1, 1, 0, 0]


def test_a_step_of_phew_is_taken_in_proportion_to_its_weight() -> None:
    # One input and two hidden units with weights 3 and -1 into them: three of four walks from the
    # input take the first.
    network = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    network[0].weight.data = torch.tensor([[3.0], [-1.0]])
    network[1].weight.data = torch.tensor([[1.0, 1.0]])
    dense = {name: parameter.clone() for name, parameter in network.named_parameters()}
    taken = 0
    for seed in range(300):
        network.load_state_dict(dense)
        taken += int(prune(network, PHEW(seed), num_kept=2, input_shape=(1,))["0.weight"][0, 0])
    assert taken / 300 == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 300))


def test_choices_are_drawn_in_proportion_to_weights_and_never_with_weight_zero() -> None:
    places = torch.tensor([2, 0, 0, 2, 2])
    choice = WeightedChoice(
        places,
        torch.tensor([10, 11, 12, 13, 14]),
        torch.tensor([1.0, 0.0, 5.0, 2.0, 1.0], dtype=torch.float64),
        3,
    )
    generator = torch.Generator().manual_seed(0)
    drawn = choice.draw(torch.tensor([0, 1, 2]).repeat(8000), generator).view(-1, 3)
    assert set(drawn[:, 0].tolist()) == {12}
    assert set(drawn[:, 1].tolist()) == {-1}
    counts = torch.bincount(drawn[:, 2])[10:]
    assert (counts / 8000).tolist() == pytest.approx([0.25, 0, 0, 0.5, 0.25], abs=0.025)


def test_walks_of_phew_start_in_turn_from_every_input_and_every_output() -> None:
    network = FC((1, 4, 4), depth=3, width=12)
    masks = prune(network, PHEW(), num_kept=250, input_shape=(1, 4, 4))
    assert masks["layers.1.weight"].any(0).all()
    assert masks["layers.5.weight"].any(1).all()


def test_the_layer_graph_contains_connections_through_shortcuts() -> None:
    found = graph_of(ResNet(8, width=4), (3, 8, 8))
    names = list(found.entries)
    stem = names[0]
    assert [name for name, entry in found.entries.items() if entry.any()] == [stem]
    # The output of the stem is read by the first convolution of the first block and, through the
    # shortcut, by all readers of that block's output.
    readers = [reader for reader, source in found.feeds if source == stem]
    assert len(readers) == 3
    assert all(found.feeds[reader, stem].tolist() == [0, 1, 2, 3] for reader in readers)
    assert [name for name, exits in found.exits.items() if exits.any()] == ["fc.weight"]


def test_the_layer_graph_contains_connections_through_groups_concatenation_and_flattening() -> None:
    found = graph_of(Joined(), (2, 4, 4))
    assert found.feeds["grouped.weight", "stem.weight"].tolist() == [0, 1, 2, 3]
    # Ten channels of 2 x 2 pixels: the first four channels are the stem's.
    assert (
        found.feeds["fc.weight", "stem.weight"].tolist()
        == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [-1] * 24
    )
    assert found.feeds["fc.weight", "grouped.weight"].tolist() == [-1] * 16 + [
        c for c in range(6) for _ in range(4)
    ]
    assert found.groups == {"stem.weight": 1, "grouped.weight": 2, "fc.weight": 1}


def test_layers_that_phew_cannot_walk_through_are_an_error_that_names_them() -> None:
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with pytest.raises(ValueError, match=r"cannot walk .*self_attn\.in_proj_weight"):
        prune(attention, PHEW(), density=0.5, input_shape=(4, 8))


@pytest.mark.slow
def test_phew_keeps_most_units_of_a_large_network() -> None:
    network = VGG(16)
    masks = prune(network, PHEW(), density=0.01, input_shape=(3, 32, 32))
    assert masks.kept == math.ceil(masks.total / 100)
    assert is_connected(network, masks, example_of(network, (3, 32, 32), None))
    assert all(mask.flatten(1).any(1).float().mean() > 0.9 for mask in masks.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121", "resnet50"])
def test_phew_prunes_networks_of_torchvision(name: str) -> None:
    network = getattr(torchvision.models, name)(num_classes=10)
    masks = prune(network, PHEW(), density=0.05, input_shape=(3, 64, 64))
    assert masks.kept == math.ceil(masks.total / 20)
    used = on_a_path(network, dict(masks), (3, 64, 64))
    assert all(not (mask & ~used[layer]).any() for layer, mask in masks.items())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_phew_with_weights_that_are_not_finite_is_an_error(value: float) -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    network[0].weight.data[0, 0] = value
    with pytest.raises(FloatingPointError, match=r"the weights of '0\.weight' are not finite"):
        prune(network, PHEW(seed=0), density=0.3, input_shape=(6,))


def test_phew_with_local_scope_notes_that_weights_may_lie_on_no_path() -> None:
    pruner = PHEW(seed=0)
    prune(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
        pruner,
        density=0.5,
        scope="local",
        input_shape=(6,),
    )
    assert pruner.notes == (
        "each layer is pruned alone, so not all that is kept need lie on a path; with scope global"
        " it does",
    )
