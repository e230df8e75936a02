"""A recording pruner computes the same masks as its pruner and records its rounds."""

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


def test_it_records_the_weights_kept_after_each_round_and_the_scores_of_the_last() -> None:
    recorded = RecordingPruner(Magnitude(), rounds=2)
    prune(two_layers(), recorded, num_kept=2, rounds=2, schedule="linear")  # 6, 4, 2
    assert recorded.kept == {"0.weight": [4, 2, 0], "2.weight": [2, 2, 2]}
    assert recorded.scores["0.weight"].tolist() == [[0, 0], [3, 4]]
    assert recorded.scores["2.weight"].tolist() == [[5, 6]]


@pytest.mark.parametrize("pruner", [SynFlow(), SNIP(), Magnitude()], ids=lambda pruner: pruner.name)
def test_recording_does_not_change_the_masks(pruner: Pruner) -> None:
    batches = [(torch.randn(8, 3, 32, 32), torch.arange(8))]
    network = VGG(11)
    alone, recorded = (
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
    assert all(torch.equal(alone[name], recorded[name]) for name in alone)


def test_recorded_scores_of_synflow_have_the_shape_of_the_weights_and_not_of_their_blocks() -> None:
    network = VGG(11)
    recorded = RecordingPruner(SynFlow())
    masks = prune(network, recorded, density=0.001, input_shape=(3, 32, 32))
    for name in masks:
        assert recorded.scores[name].shape == masks[name].shape
        assert recorded.scores[name][masks[name]].gt(0).all()
        # These scores precede the last removal; a kept weight without flow has the score zero.
        assert (
            recorded.kept[name][-1]
            <= recorded.scores[name].count_nonzero()
            <= recorded.kept[name][-2]
        )
    # The flow into a unit equals the flow out of it, so the scores of all layers have one sum.
    sums = torch.stack([score.sum() for score in recorded.scores.values()])
    torch.testing.assert_close(sums, sums[:1].expand_as(sums), rtol=1e-4, atol=0)


def test_a_recording_pruner_shares_the_name_and_the_notes_of_its_pruner() -> None:
    network, pruner = two_layers(), Magnitude()
    network[2].weight.data.zero_()
    prune(network, RecordingPruner(pruner), num_kept=4)
    assert RecordingPruner(pruner).name == "Magnitude"
    assert pruner.notes == ("kept dense, since their scores are zero throughout: 2.weight",)


def test_a_pruning_that_removes_nothing_records_nothing() -> None:
    recorded = RecordingPruner(Magnitude())
    masks = prune(two_layers(), recorded, density=1)
    assert (recorded.kept, recorded.scores) == ({}, {})
    assert isinstance(masks, Masks)


def test_recordings_of_successive_prunings_are_joined() -> None:
    network, first, second, third = two_layers(), *(RecordingPruner(Magnitude()) for _ in range(3))
    masks = prune(network, first, num_kept=5)
    masks = prune(network, second, num_kept=5, masks=masks)  # removes nothing
    prune(network, third, num_kept=3, masks=masks)
    whole = third.after(second.after(first.after(None)))
    assert whole.kept == {"0.weight": [4, 3, 1], "2.weight": [2, 2, 2]}
    assert whole.scores["0.weight"].tolist() == [[0, 2], [3, 4]]


@pytest.mark.parametrize("rounds", [1, 5])
def test_scores_are_missing_if_the_pruning_has_another_number_of_rounds(rounds: int) -> None:
    recorded = RecordingPruner(Magnitude(), rounds=3)
    prune(two_layers(), recorded, num_kept=3, rounds=rounds)
    assert recorded.scores == {}
    prune(two_layers(), recorded, num_kept=3)
    assert recorded.scores.keys() == recorded.kept.keys()
