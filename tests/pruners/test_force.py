from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from synflow_pl import prune
from synflow_pl.pruners import FORCE, SNIP, PruningState
from tests.pruners.networks import half_square, scores, small, small_batches


def test_force_in_its_first_round_is_snip() -> None:
    force, snip = (scores(pruner, small(), small_batches()) for pruner in (FORCE(), SNIP()))
    assert all(torch.equal(force[name], snip[name]) for name in snip)


def test_force_scores_a_removed_weight_by_its_value_and_the_gradient_of_the_pruned_network() -> (
    None
):
    # f(x) = w . x with w = (2, -1), x = (1, 3), target 1. Without the first weight f = -3, the
    # error is -4, dL/dw = -4 x = (-4, -12), and the scores are (|2 * -4|, |-1 * -12|).
    network = nn.Linear(2, 1, bias=False)
    network.weight.data = torch.tensor([[2.0, -1.0]])
    batches = [(torch.tensor([[1.0, 3.0]]), torch.tensor([1.0]))]
    masks = {"weight": torch.tensor([[False, True]])}
    assert scores(FORCE(), network, batches, half_square, masks=masks)["weight"].tolist() == [
        [8.0, 12.0]
    ]


def test_force_brings_weights_back_and_zeros_are_final_after_the_last_round_only() -> None:
    seen: list[dict[str, Tensor]] = []

    class Recording(FORCE):
        def score(self, state: PruningState) -> dict[str, Tensor]:
            seen.append({name: mask.clone() for name, mask in state.masks.items()})
            assert all(weight.all() for weight in state.weights.values())  # dense in every round
            return super().score(state)

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    )
    batches = [(torch.randn(32, 8), torch.randint(0, 4, (32,)))]
    dense = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    masks = prune(network, Recording(), density=0.1, rounds=10, batches=batches)
    seen.append(dict(masks))
    back = sum(
        int((later[name] & ~earlier[name]).sum())
        for earlier, later in pairwise(seen)
        for name in later
    )
    assert back > 0
    kept = [sum(int(mask.sum()) for mask in masks.values()) for masks in seen]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == 45  # a tenth of 8 * 16 + 16 * 16 + 16 * 4 = 448
    assert all(
        torch.equal(network.get_parameter(name), dense[name] * mask) for name, mask in masks.items()
    )
