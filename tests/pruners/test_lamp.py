from __future__ import annotations

import pytest
import torch
from torch import nn

from synflow_pl import prune
from synflow_pl.networks import FC
from synflow_pl.pruners import LAMP
from tests.pruners.networks import scores


def test_lamp_divides_a_square_by_the_sum_of_the_squares_that_are_not_smaller() -> None:
    network = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 2, bias=False))
    network[0].weight.data = torch.tensor([[1.0, -3.0, 2.0]])
    network[1].weight.data = torch.tensor([[0.1], [-0.2]])
    found = scores(LAMP(), network)
    assert found["0.weight"].tolist() == [pytest.approx([1 / 14, 9 / 9, 4 / 13])]
    assert found["1.weight"].flatten().tolist() == pytest.approx([0.01 / 0.05, 1.0])
    masks = prune(network, LAMP(), num_kept=3)
    assert masks["0.weight"].tolist() == [[False, True, True]]
    assert masks["1.weight"].tolist() == [[False], [True]]


def test_lamp_empties_no_layer_before_every_layer_is_down_to_one_weight() -> None:
    network = FC()
    with torch.no_grad():
        network.layers[1].weight.mul_(1e-4)
    assert [int(mask.sum()) for mask in prune(network, LAMP(), num_kept=6).values()] == [1] * 6


def test_lamp_keeps_the_same_weights_in_one_round_and_in_several() -> None:
    # Removed weights are the smallest of their layer, so they are in no other weight's score.
    torch.manual_seed(0)
    at_once = prune(FC(depth=3), LAMP(), density=0.05)
    torch.manual_seed(0)
    iterated = prune(FC(depth=3), LAMP(), density=0.05, rounds=7)
    assert all(torch.equal(mask, iterated[name]) for name, mask in at_once.items())
