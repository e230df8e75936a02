from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from synflow_pl import prune
from synflow_pl.networks import FC
from synflow_pl.pruners import Magnitude, Pruner, Random, Subject, SynFlow


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either density, in \\(0, 1\\], or kept"),
        ({"density": 0.1, "kept": 3}, "give either density"),
        ({"density": 0}, r"density: 0 is not in \(0, 1\]"),
        ({"density": 1.5}, r"density: 1.5 is not in \(0, 1\]"),
        ({"kept": 0}, "kept: 0 must be a whole number of weights, at least 1"),
        ({"kept": 10**9}, "kept: 1000000000 is more than the 119400 prunable weights"),
        ({"kept": 5, "scope": "local"}, "with scope='local' give density"),
        ({"density": 0.1, "rounds": 0}, "rounds: 0 must be a whole number, at least 1"),
        ({"density": 0.1, "rounds": 2.0}, "rounds: 2.0 must be a whole number"),
        ({"density": 0.1, "schedule": "exponentail"}, "'exponentail' is not one of exponential, linear; did you mean 'exponential'"),
        ({"density": 0.1, "scope": "globl"}, "scope: 'globl' is not one of global, local; did you mean 'global'"),
    ],
)
def test_an_impossible_option_is_named_before_any_work(options: dict[str, Any], message: str) -> None:
    class Unasked(Pruner):
        def score(self, subject: Subject) -> Any:
            raise AssertionError("asked for scores")

    with pytest.raises(ValueError, match=message):
        prune(FC(), Unasked(), **options)


def test_synflow_asks_for_the_inputs_shape() -> None:
    with pytest.raises(ValueError, match="give either input_shape"):
        prune(FC(), SynFlow(), density=0.1)


def test_a_pruner_that_scores_on_data_asks_for_batches() -> None:
    class OnData(Magnitude):
        needs_batches = True

    with pytest.raises(ValueError, match="OnData scores on data: give batches="):
        prune(FC(), OnData(), density=0.1)


def test_rounds_are_the_pruners_own_unless_given_and_each_is_told() -> None:
    told: list[tuple[int, float]] = []
    prune(FC(), SynFlow(), density=0.01, input_shape=(1, 28, 28), on_round=lambda index, density: told.append((index, density)))
    assert [index for index, _ in told] == list(range(1, 101))
    assert told[49][1] == pytest.approx(0.1, abs=1e-5)
    assert told[-1][1] == 1194 / 119400
    told.clear()
    prune(FC(), Magnitude(), density=0.01, on_round=lambda index, density: told.append((index, density)))
    assert len(told) == 1


def test_a_pruner_is_told_the_density_to_come() -> None:
    densities = []

    class Curious(Magnitude):
        def score(self, subject: Subject) -> Any:
            densities.append(float(subject.density))
            return super().score(subject)

    prune(FC(), Curious(), density=0.04, rounds=2)
    assert densities == pytest.approx([0.2, 0.04], abs=1e-5)


def test_an_interruption_leaves_the_network_dense() -> None:
    network = FC()
    before = [parameter.clone() for parameter in network.parameters()]

    def interrupt(index: int, _: float) -> None:
        if index == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(network, SynFlow(), density=0.01, input_shape=(1, 28, 28), on_round=interrupt)
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def test_a_bias_lives_exactly_as_long_as_its_unit() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    network[0].weight.data = torch.tensor([[5.0, 4.0], [0.1, 0.2], [3.0, 0.3]])
    network[2].weight.data = torch.tensor([[1.0, 1.0, 1.0]])
    network[0].bias.data = torch.tensor([7.0, 8.0, 9.0])
    masks = prune(network, Magnitude(), kept=6, bias=True)
    assert masks["0.bias"].tolist() == [True, False, True]
    assert masks["2.bias"].tolist() == [True]
    assert network[0].bias.tolist() == [7.0, 0.0, 9.0]
    assert (masks.kept, masks.total) == (6, 9)
    assert masks.followers == {"0.bias", "2.bias"}


def test_the_units_of_a_transposed_convolution_are_its_second_dimension() -> None:
    network = nn.Sequential(nn.ConvTranspose2d(2, 3, 1))
    network[0].weight.data = torch.tensor([[1.0, 0.1, 3.0], [2.0, 0.2, 0.3]]).view(2, 3, 1, 1)
    assert prune(network, Magnitude(), kept=3, bias=True)["0.bias"].tolist() == [True, False, True]


def test_a_normalisation_follows_the_layer_that_it_reads_and_no_other() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.loose = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            out = self.bn(self.conv(images))
            return self.loose(out + images)

    network = Net()
    network.conv.weight.data = torch.tensor([5.0, 0.1]).view(2, 1, 1, 1)
    nn.init.constant_(network.bn.bias, 3.0)
    masks = prune(network, Magnitude(), kept=1, norm=True, input_shape=(1, 2, 2))
    assert masks.followers == {"bn.weight", "bn.bias"}
    assert network.bn.bias.tolist() == [3.0, 0.0]
    assert network.bn.weight.tolist() == [1.0, 0.0]
    assert network.loose.weight.tolist() == [1.0, 1.0]


def test_random_scores_on_many_rounds_end_exactly_too() -> None:
    # More rounds than the list of candidates is packed; whoever died must never be counted twice.
    masks = prune(FC(), Random(), density=0.003, rounds=60)
    assert masks.kept == 359
