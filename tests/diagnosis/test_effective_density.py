"""What must hold of density and effective density."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from synflow_pl import Masks, diagnose, prune
from synflow_pl.flow import Connectivity, example_of
from synflow_pl.masks import prunable
from synflow_pl.networks import FC, VGG, Conv, ResNet
from synflow_pl.pruners import SynFlow

NETWORKS = {
    "chain": (
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)),
        (4,),
    ),
    "convolutions": (
        nn.Sequential(
            nn.Conv2d(2, 4, 3, groups=2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
        ),
        (2, 6, 6),
    ),
    "residual": (ResNet(20, width=4), (3, 8, 8)),
}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(NETWORKS)), density=st.floats(0.02, 1), seed=st.integers(0, 10**6)
)
def test_effective_density_is_at_most_density_in_every_layer_and_zero_exactly_in_a_dead_network(
    name: str, density: float, seed: int
) -> None:
    network, shape = NETWORKS[name]
    generator = torch.Generator().manual_seed(seed)
    masks = Masks(
        {
            key: torch.rand(w.shape, generator=generator) < density
            for key, w in prunable(network).items()
        }
    )
    told = diagnose(network, masks, input_shape=shape)
    assert all(0 <= layer.effective <= layer.kept <= layer.total for layer in told.layers)
    assert all(layer.effective_density <= layer.density for layer in told.layers)
    assert told.alive == (told.effective > 0) == (told.broken is None)
    # Flow and paths agree: what no path passes scores nothing, and a network that is alive has
    # flow.
    assert all((layer.flow > 0) == (layer.effective > 0) for layer in told.layers)


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(sorted(NETWORKS)), seed=st.integers(0, 10**6))
def test_removing_what_is_not_effective_leaves_all_that_is(name: str, seed: int) -> None:
    network, shape = NETWORKS[name]
    generator = torch.Generator().manual_seed(seed)
    masks = Masks(
        {
            key: torch.rand(w.shape, generator=generator) < 0.3
            for key, w in prunable(network).items()
        }
    )
    first = diagnose(network, masks, input_shape=shape)
    effective = Masks(Connectivity(network, example_of(network, shape, None)).effective(masks))
    again = diagnose(network, effective, input_shape=shape)
    assert again.kept == again.effective == first.effective


def missing(network: nn.Module, shape: tuple[int, ...], density: float) -> float:
    """What SynFlow keeps for nothing, as a fraction of what it keeps."""
    masks = prune(network, SynFlow(), density=density, input_shape=shape)
    told = diagnose(network, masks, input_shape=shape)
    return (told.kept - told.effective) / told.kept


@pytest.mark.parametrize(
    ("density", "within"),
    [(0.1, 1e-3), (0.01, 1e-3), (0.001, 5e-3)],
    ids=["density0.1", "density0.01", "density0.001"],
)
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (Conv, (1, 28, 28)),
        pytest.param(lambda: VGG(11), (3, 32, 32), marks=pytest.mark.slow),
        pytest.param(lambda: VGG(16), (3, 32, 32), marks=pytest.mark.slow),
    ],
    ids=["conv", "vgg11", "vgg16"],
)
def test_nearly_all_that_synflow_keeps_of_a_chain_is_effective(
    network: type[nn.Module], shape: tuple[int, ...], density: float, within: float
) -> None:
    assert missing(network(), shape, density) <= within


@pytest.mark.parametrize("density", [0.1, 0.01, 0.001])
def test_of_a_small_chain_it_is_all_but_a_few_weights(density: float) -> None:
    # At 0.01 and below a thousandth of what is kept is less than two weights; the last round leaves
    # a few dangling.
    network = FC()
    masks = prune(network, SynFlow(), density=density, input_shape=(1, 28, 28))
    told = diagnose(network, masks, input_shape=(1, 28, 28))
    assert told.kept - told.effective <= max(1e-3 * told.kept, 4)


def test_vgg_16_takes_seconds() -> None:
    network = VGG(16)
    masks = Masks({name: torch.rand(w.shape) < 0.01 for name, w in prunable(network).items()})
    started = time.process_time()
    told = diagnose(network, masks, input_shape=(3, 32, 32))
    assert time.process_time() - started < 20
    assert told.total == 14_715_584
