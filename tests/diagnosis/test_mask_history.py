"""Tests of the masks after each round and of the round in which a network was disconnected."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from synflow_pl import prune
from synflow_pl.diagnosis import MaskHistory
from synflow_pl.flow import Connectivity, example_of
from synflow_pl.masks import Masks
from synflow_pl.pruners import Magnitude


def test_the_history_returns_the_masks_after_every_round() -> None:
    network, seen, history = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20)), [], MaskHistory()

    def on_round(index: int, density: float, masks: dict[str, Tensor]) -> None:
        seen.append({name: mask.clone() for name, mask in masks.items()})
        history(index, density, masks)

    # More rounds than a byte can count.
    prune(network, Magnitude(), density=0.01, rounds=400, on_round=on_round)
    for index in (1, 2, 255, 256, 257, 400):
        after = history.after(index)
        assert all(torch.equal(after[name], mask) for name, mask in seen[index - 1].items())
        assert history.densities[index - 1] == pytest.approx(after.density)


def test_died_is_the_first_round_after_which_no_path_is_left() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].weight.data = torch.tensor([[8.0, 1.0], [2.0, 3.0]])
    network[1].weight.data = torch.tensor([[5.0, 4.0], [6.0, 7.0]])
    history = MaskHistory()
    prune(network, Magnitude(), num_kept=1, rounds=7, schedule="linear", on_round=history)
    paths = Connectivity(network, example_of(network, (2,), None))
    # Weight 8 feeds unit 0, which weights 5 and 6 read. The path through 8 and 6 is cut in the
    # sixth round, which keeps 2 of 8 weights.
    assert history.died(paths) == (6, 2 / 8)


def test_died_is_none_for_a_connected_network() -> None:
    network, history = nn.Sequential(nn.Linear(2, 2)), MaskHistory()
    assert history.died(Connectivity(network, example_of(network, (2,), None))) is None
    prune(network, Magnitude(), num_kept=1, rounds=3, on_round=history)
    assert history.died(Connectivity(network, example_of(network, (2,), None))) is None


def test_died_is_the_first_round_if_that_round_disconnects_the_network() -> None:
    network, history = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), MaskHistory()
    for index, density in ((1, 0.5), (2, 0.5)):
        history(
            index,
            density,
            Masks({"0.weight": torch.tensor([[False]]), "1.weight": torch.tensor([[True]])}),
        )
    assert history.died(Connectivity(network, example_of(network, (1,), None))) == (1, 0.5)
