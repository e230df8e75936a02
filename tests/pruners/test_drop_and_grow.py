"""Drop and grow on masks, its schedule, and the initial masks and growth of RigL and SET."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from synflow_pl import prune
from synflow_pl.networks import Conv
from synflow_pl.pruners import SET, GradualMagnitude, Random, RigL, SynFlow
from synflow_pl.pruners.drop_and_grow import DropAndGrow, GrowthState, drop_then_grow

METHODS = [RigL, SET]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)


def by_sorting(
    weight: Tensor, mask: Tensor, growth: Tensor, fraction: float, by_sign: bool = False
) -> Tensor:
    """Return the mask after an update by sorting Python numbers, position after value."""
    weights, scores, kept = (x.flatten().tolist() for x in (weight, growth, mask))
    ranked = sorted((i for i, k in enumerate(kept) if k), key=lambda i: (-abs(weights[i]), i))
    stay = []
    for group in (False, True) if by_sign else (None,):
        members = [i for i in ranked if group in (None, weights[i] < 0)]
        stay += members[: len(members) - math.floor(len(members) * fraction + 1e-9)]
    count = len(ranked) - len(stay)
    others = sorted(set(range(len(kept))) - set(stay), key=lambda i: (-scores[i], i))
    result = torch.zeros(len(kept), dtype=torch.bool)
    result[[*stay, *others[:count]]] = True
    return result.view_as(mask)


def test_the_smallest_kept_weights_are_dropped_and_the_largest_scores_grown() -> None:
    weight = torch.tensor([[4.0, -0.5, 3.0], [0.0, 0.0, -1.0]])
    mask = torch.tensor([[True, True, True], [False, False, True]])
    growth = torch.tensor([[9.0, 1.0, 9.0], [2.0, 7.0, 8.0]])
    # Half of four kept weights are dropped, -0.5 and -1. Of those and the two pruned ones, the
    # scores 8 (the dropped -1, which therefore stays) and 7 are the largest.
    after, grown = drop_then_grow(weight, mask, growth, 0.5)
    assert after.tolist() == [[True, False, True], [False, True, True]]
    assert grown.tolist() == [[False, False, False], [False, True, True]]


def test_set_drops_the_same_fraction_of_the_positive_and_of_the_negative_weights() -> None:
    weight = torch.tensor([1.0, 2, 3, 4, -10, -20, -30, -40, -50, 0, 0])
    mask = weight != 0
    # Half of four positive and of five negative weights, rounded down: 1 and 2, -10 and -20. By
    # magnitude the four smallest would be all positive weights.
    for by_sign, dropped in ((True, {0, 1, 4, 5}), (False, {0, 1, 2, 3})):
        growth = torch.ones(11).index_fill(0, torch.tensor(sorted(dropped)), 0.0)
        after, grown = drop_then_grow(weight, mask, growth, 0.5, by_sign)
        assert set((mask & ~after).nonzero().flatten().tolist()) <= dropped
        assert grown.nonzero().flatten().tolist()[-2:] == [9, 10]
        assert int(after.sum()) == 9
    assert SET().by_sign
    assert not SET(by_sign=False).by_sign
    assert not RigL().by_sign


def test_of_equal_values_the_first_weight_is_kept_or_grown() -> None:
    mask = torch.tensor([False, True, True, True, False, False])
    after, _ = drop_then_grow(torch.tensor([0.0, 1, 1, 1, 0, 0]), mask, torch.zeros(6), 0.4)
    assert after.tolist() == [True, True, True, False, False, False]


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 9),
    values=st.integers(1, 6),
    fraction=st.floats(0, 1),
    by_sign=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_an_update_equals_sorting_and_keeps_the_number_of_weights(
    rows: int, columns: int, values: int, fraction: float, by_sign: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> Tensor:  # few different values, so that there are many ties
        return torch.randint(-values, values + 1, (rows, columns), generator=generator).float()

    mask = torch.rand(rows, columns, generator=generator) < 0.5
    weight, growth = drawn() * mask, drawn().abs()
    kept = int(mask.sum())
    after, grown = drop_then_grow(weight, mask, growth, fraction, by_sign)
    assert int(after.sum()) == kept
    count = math.floor(kept * fraction + 1e-9)
    assert int(grown.sum()) in ((count - 1, count) if by_sign else (count,))
    assert not (grown & ~after).any()
    assert not (after & ~mask & ~grown).any()
    assert torch.equal(after, by_sorting(weight, mask, growth, fraction, by_sign))


def test_large_layers_are_updated_as_by_sorting() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(300, 1100, generator=generator) < 0.1
    weight = torch.randn(300, 1100, generator=generator) * mask
    growth = torch.randn(300, 1100, generator=generator).abs()
    for by_sign in (False, True):
        after, _ = drop_then_grow(weight, mask, growth, 0.3, by_sign)
        assert torch.equal(after, by_sorting(weight, mask, growth, 0.3, by_sign))


@pytest.mark.parametrize(
    ("num_kept", "fraction", "dropped"), [(100, 0.29, 29), (70, 0.3, 21), (7, 0.5, 3), (3, 0.3, 0)]
)
def test_the_number_of_dropped_weights_is_rounded_down(
    num_kept: int, fraction: float, dropped: int
) -> None:
    mask = torch.arange(200) < num_kept
    after, _ = drop_then_grow(torch.ones(200) * mask, mask, torch.arange(200.0), fraction)
    assert int((mask & ~after).sum()) == dropped


def test_the_drop_fraction_follows_the_cosine_of_the_paper_or_is_constant() -> None:
    rigl, evolutionary = RigL(drop_fraction=0.3), SET(drop_fraction=0.2)
    end = 750
    for step in range(0, end + 1, 50):
        expected = 0.3 / 2 * (1 + math.cos(step * math.pi / end))
        assert rigl.fraction_at(step / end) == pytest.approx(expected, abs=1e-15)
        assert evolutionary.fraction_at(step / end) == 0.2
    assert RigL(anneal="constant").fraction_at(0.9) == 0.3
    assert SET(anneal="cosine").fraction_at(0.5) == pytest.approx(0.15)


@each_method
def test_initial_masks_are_random_with_the_distribution_of_the_paper(
    method: type[RigL | SET],
) -> None:
    def masks(pruner: Any, **options: Any) -> Mapping[str, Tensor]:
        torch.manual_seed(3)
        return prune(Conv(), pruner, density=0.1, input_shape=(1, 28, 28), **options)

    quota: Any = {RigL: "erk", SET: "er"}[method]
    for pruner, expected, options in (
        (method(), Random(quota=quota), {}),
        (method(), Random(), {"scope": "local"}),
        (method(Random(quota="uniform")), Random(quota="uniform"), {}),
        (method(SynFlow()), SynFlow(), {"rounds": 3}),
    ):
        ours, theirs = masks(pruner, **options), masks(expected, **options)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_set_grows_each_weight_that_is_not_kept_equally_often() -> None:
    weight, mask = torch.tensor([1.0, 2, 3, 4, 0, 0, 0, 0]), torch.arange(8) < 4
    times = torch.zeros(8)
    updates = 4000
    for seed in range(updates):
        generator = torch.Generator().manual_seed(seed)
        state = GrowthState({"w": weight}, {"w": mask}, generator)
        scores = SET().growth_scores(state)["w"]
        times += drop_then_grow(weight, mask, scores, 0.5)[1]
    # Two of four kept weights are dropped, 1 and 2, and two of six candidates grown: each in a
    # third of the updates, with a standard deviation of 0.0075 over 4000 updates.
    share = times / updates
    assert not share[2:4].any()
    candidates = share[[0, 1, 4, 5, 6, 7]]
    assert candidates.sum() == pytest.approx(2)
    assert (candidates - 1 / 3).abs().max() < 4 * 0.0075


@each_method
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_fraction": 0}, "drop_fraction: 0 must be a fraction, in"),
        ({"drop_fraction": 1.5}, "drop_fraction: 1.5 must be a fraction, in"),
        ({"t_end": 0.0}, "t_end: 0.0 must be a fraction, in"),
        ({"delta_t": 0}, "delta_t: 0 must be a whole number of optimiser steps, at least"),
        ({"delta_t": 2.5}, "delta_t: 2.5 must be a whole number"),
        ({"anneal": "linear"}, "anneal: 'linear' is not one of cosine, constant"),
        ({"initial": GradualMagnitude()}, "initial: GradualMagnitude prunes during training"),
        ({"initial": SET()}, "initial: SET prunes during training"),
    ],
)
def test_an_impossible_option_is_an_error(
    method: type[DropAndGrow], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        method(**options)  # type: ignore[call-arg]


def test_rigl_cannot_update_at_every_step() -> None:
    # Each of its updates replaces an optimiser step, so that nothing would be trained.
    with pytest.raises(ValueError, match=r"delta_t: 1 must be .* at least 2"):
        RigL(delta_t=1)
    assert SET(delta_t=1).delta_t == 1


def test_prune_with_a_moving_pruner_gives_the_initial_masks() -> None:
    network = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 5))
    # Erdős-Rényi: 30 : 15 of 200 and 50 weights, which are 50 together.
    masks = prune(network, RigL(), density=0.2, on_collapse="ignore")
    assert [int(mask.sum()) for mask in masks.values()] == [33, 17]
