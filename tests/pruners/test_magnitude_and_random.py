from __future__ import annotations

import torch
from torch import nn

from synflow_pl import prune
from synflow_pl.networks import FC
from synflow_pl.pruners import Magnitude, Random


def test_magnitude_keeps_the_largest_weights_of_either_sign() -> None:
    network = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 2, bias=False))
    network[0].weight.data = torch.tensor([[0.1, -5.0, 2.0]])
    network[1].weight.data = torch.tensor([[-0.3], [0.2]])
    masks = prune(network, Magnitude(), num_kept=3)
    assert masks["0.weight"].tolist() == [[False, True, True]]
    assert masks["1.weight"].tolist() == [[True], [False]]


def test_random_masks_depend_on_the_global_seed_and_are_spread_evenly() -> None:
    torch.manual_seed(3)
    first = prune(FC(), Random(), density=0.1)
    torch.manual_seed(3)
    again = prune(FC(), Random(), density=0.1)
    torch.manual_seed(4)
    other = prune(FC(), Random(), density=0.1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    # 78,400 weights at density 0.1: 7,840 expected, standard deviation 84.
    assert abs(int(first["layers.1.weight"].sum()) - 7840) < 5 * 84


def test_a_seed_given_to_random_takes_precedence_over_the_global_seed() -> None:
    torch.manual_seed(3)
    first = prune(FC(), Random(seed=7), density=0.1)
    torch.manual_seed(4)
    again = prune(FC(), Random(seed=7), density=0.1)
    assert all(torch.equal(first[name], again[name]) for name in first)
