"""In which round a network died."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from synflow_pl import prune
from synflow_pl.diagnosis import MaskHistory
from synflow_pl.flow import Connectivity, example_of
from synflow_pl.masks import Masks
from synflow_pl.pruners import Magnitude


def test_the_masks_after_every_round_can_be_had_again() -> None:
    network, seen, survival = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20)), [], MaskHistory()

    def on_round(index: int, density: float, masks: dict[str, Tensor]) -> None:
        seen.append({name: mask.clone() for name, mask in masks.items()})
        survival(index, density, masks)

    prune(
        network, Magnitude(), density=0.01, rounds=400, on_round=on_round
    )  # more rounds than a byte can count
    for index in (1, 2, 255, 256, 257, 400):
        then = survival.after(index)
        assert all(torch.equal(then[name], mask) for name, mask in seen[index - 1].items())
        assert survival.densities[index - 1] == pytest.approx(then.density)


def test_the_round_of_death_is_the_first_after_which_no_path_is_left() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].weight.data = torch.tensor([[8.0, 1.0], [2.0, 3.0]])
    network[1].weight.data = torch.tensor([[5.0, 4.0], [6.0, 7.0]])
    survival = MaskHistory()
    prune(network, Magnitude(), num_kept=1, rounds=7, schedule="linear", on_round=survival)
    paths = Connectivity(network, example_of(network, (2,), None))
    # 8 reads the input and feeds unit 0, which 5 and 6 read; 6 goes in the sixth round, with 2 of 8
    # weights left.
    assert survival.died(paths) == (6, 2 / 8)


def test_a_network_that_lives_has_no_round_of_death() -> None:
    network, survival = nn.Sequential(nn.Linear(2, 2)), MaskHistory()
    assert survival.died(Connectivity(network, example_of(network, (2,), None))) is None
    prune(network, Magnitude(), num_kept=1, rounds=3, on_round=survival)
    assert survival.died(Connectivity(network, example_of(network, (2,), None))) is None


def test_a_path_that_is_gone_in_the_first_round_already() -> None:
    network, survival = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), MaskHistory()
    for index, density in ((1, 0.5), (2, 0.5)):
        survival(
            index,
            density,
            Masks({"0.weight": torch.tensor([[False]]), "1.weight": torch.tensor([[True]])}),
        )
    assert survival.died(Connectivity(network, example_of(network, (1,), None))) == (1, 0.5)
