"""A watched pruner prunes as it would alone, and what is remembered is what happened."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from synflow_pl import prune
from synflow_pl.masks import Masks
from synflow_pl.networks import VGG
from synflow_pl.pruners import SNIP, Magnitude, Pruner, SynFlow
from synflow_pl.pruners.recording import RecordingPruner


def two_layers() -> nn.Sequential:
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    network[0].weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    network[2].weight.data = torch.tensor([[5.0, 6.0]])
    return network


def test_it_tells_the_weights_left_after_each_round_and_the_scores_that_decided_the_last() -> None:
    watched = RecordingPruner(Magnitude(), rounds=2)
    prune(two_layers(), watched, num_kept=2, rounds=2, schedule="linear")  # 6, 4, 2
    assert watched.kept == {"0.weight": [4, 2, 0], "2.weight": [2, 2, 2]}
    assert watched.scores["0.weight"].tolist() == [[0, 0], [3, 4]]
    assert watched.scores["2.weight"].tolist() == [[5, 6]]


@pytest.mark.parametrize("pruner", [SynFlow(), SNIP(), Magnitude()], ids=lambda pruner: pruner.name)
def test_the_masks_are_those_of_the_pruner_alone(pruner: Pruner) -> None:
    batches = [(torch.randn(8, 3, 32, 32), torch.arange(8))]
    network = VGG(11)
    alone, watched = (
        prune(
            copy.deepcopy(network),
            each,
            density=0.1,
            rounds=3,
            input_shape=(3, 32, 32),
            batches=batches,
        )
        for each in (pruner, RecordingPruner(pruner, rounds=3))
    )
    assert all(torch.equal(alone[name], watched[name]) for name in alone)


def test_scores_are_told_in_the_shape_of_the_weights_though_synflow_works_on_their_living_blocks() -> (
    None
):
    network = VGG(11)
    watched = RecordingPruner(SynFlow())
    masks = prune(network, watched, density=0.001, input_shape=(3, 32, 32))
    for name in masks:
        assert watched.scores[name].shape == masks[name].shape
        assert watched.scores[name][masks[name]].gt(0).all()
        # The last cut is still to come, and a weight that no flow passes any more scores zero.
        assert (
            watched.kept[name][-1] <= watched.scores[name].count_nonzero() <= watched.kept[name][-2]
        )
    # What flows into a unit flows out of it, so every layer's scores have the same sum.
    sums = torch.stack([score.sum() for score in watched.scores.values()])
    torch.testing.assert_close(sums, sums[:1].expand_as(sums), rtol=1e-4, atol=0)


def test_it_bears_the_other_s_name_and_its_notes_are_the_other_s() -> None:
    network, pruner = two_layers(), Magnitude()
    network[2].weight.data.zero_()
    prune(network, RecordingPruner(pruner), num_kept=4)
    assert RecordingPruner(pruner).name == "Magnitude"
    assert pruner.notes == ("kept dense, since their scores are zero throughout: 2.weight",)


def test_nothing_is_told_of_a_pruning_that_removes_nothing() -> None:
    watched = RecordingPruner(Magnitude())
    masks = prune(two_layers(), watched, density=1)
    assert (watched.kept, watched.scores) == ({}, {})
    assert isinstance(masks, Masks)


def test_a_pruning_in_parts_is_told_as_a_whole() -> None:
    network, first, second, third = two_layers(), *(RecordingPruner(Magnitude()) for _ in range(3))
    masks = prune(network, first, num_kept=5)
    masks = prune(network, second, num_kept=5, masks=masks)  # removes nothing
    prune(network, third, num_kept=3, masks=masks)
    whole = third.after(second.after(first.after(None)))
    assert whole.kept == {"0.weight": [4, 3, 1], "2.weight": [2, 2, 2]}
    assert whole.scores["0.weight"].tolist() == [[0, 2], [3, 4]]
