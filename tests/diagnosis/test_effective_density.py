"""Properties of density and effective density on random masks and on SynFlow's masks."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from synflow_pl import Masks, diagnose, prune
from synflow_pl.flow import Connectivity, example_of
from synflow_pl.networks import FC, VGG, Conv, ResNet
from synflow_pl.prunable_parameters import prunable
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
def test_effective_density_is_at_most_density_and_zero_exactly_in_a_disconnected_network(
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
    diagnosis = diagnose(network, masks, input_shape=shape)
    assert all(0 <= layer.effective <= layer.kept <= layer.total for layer in diagnosis.layers)
    assert all(layer.effective_density <= layer.density for layer in diagnosis.layers)
    assert diagnosis.alive == (diagnosis.effective > 0) == (diagnosis.broken is None)
    # Flow and paths agree: a layer has flow exactly if a path of kept weights passes through it.
    assert all((layer.flow > 0) == (layer.effective > 0) for layer in diagnosis.layers)


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(sorted(NETWORKS)), seed=st.integers(0, 10**6))
def test_pruning_all_weights_that_are_not_effective_leaves_the_effective_ones(
    name: str, seed: int
) -> None:
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


def ineffective_fraction(network: nn.Module, shape: tuple[int, ...], density: float) -> float:
    """Return the fraction of the weights kept by SynFlow that are not effective.

    In single precision, the masks of 100 rounds depend on the number of threads.
    """
    network.double()
    masks = prune(network, SynFlow(), density=density, input_shape=shape)
    diagnosis = diagnose(network, masks, input_shape=shape)
    return (diagnosis.kept - diagnosis.effective) / diagnosis.kept


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
def test_nearly_all_weights_that_synflow_keeps_in_a_chain_are_effective(
    network: type[nn.Module], shape: tuple[int, ...], density: float, within: float
) -> None:
    assert ineffective_fraction(network(), shape, density) <= within


@pytest.mark.parametrize("density", [0.1, 0.01, 0.001])
def test_all_but_a_few_weights_that_synflow_keeps_in_a_small_chain_are_effective(
    density: float,
) -> None:
    # At density 0.01 and below, a thousandth of the kept weights is less than two, and the last
    # round leaves a few kept weights off every path.
    network = FC()
    masks = prune(network, SynFlow(), density=density, input_shape=(1, 28, 28))
    diagnosis = diagnose(network, masks, input_shape=(1, 28, 28))
    assert diagnosis.kept - diagnosis.effective <= max(1e-3 * diagnosis.kept, 4)


def test_the_diagnosis_of_vgg_16_takes_less_than_twenty_seconds() -> None:
    network = VGG(16)
    masks = Masks({name: torch.rand(w.shape) < 0.01 for name, w in prunable(network).items()})
    started = time.process_time()
    diagnosis = diagnose(network, masks, input_shape=(3, 32, 32))
    assert time.process_time() - started < 20
    assert diagnosis.total == 14_715_584
