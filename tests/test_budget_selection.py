from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from synflow_pl.budget_selection import smallest_within_budget
from synflow_pl.order_statistics import smallest_up_to


def expected_count(scores: Tensor, budget: float, most: int) -> int:
    sums = scores.double().sort().values.cumsum(0)
    return min(int((sums <= budget).sum()), most)


def scores_of(kind: str, n: int, dtype: torch.dtype) -> Tensor:
    """Return non-negative scores (n,) of a kind of distribution."""
    scores = torch.rand(n, generator=torch.Generator().manual_seed(n), dtype=dtype)
    if kind == "many ties":
        scores = (scores * 8).round() / 8
    elif kind == "equal":
        scores.fill_(0.25)
    elif kind == "heavy tail":
        scores = scores.clamp(min=1e-4).pow(-8) * 1e-20
    elif kind == "mostly zero":
        scores[torch.arange(n) % 10 != 0] = 0
    return scores


def smallest_of_ties_last(scores: Tensor, count: int) -> Tensor:
    """Return the ascending indices of the smallest scores, later ones first among equal scores."""
    return len(scores) - 1 - scores.flip(0).sort(stable=True).indices[:count].sort().values.flip(0)


def everything(scores: Tensor) -> list[Tensor]:
    return [torch.ones_like(scores, dtype=torch.bool)]


@pytest.mark.parametrize("n", [1, 10, 5_000, 300_000])
@pytest.mark.parametrize("share", [0.0, 1e-6, 0.01, 0.5, 0.99, 2.0])
@pytest.mark.parametrize("kind", ["uniform", "many ties", "equal", "heavy tail", "mostly zero"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_count_is_that_of_a_full_sort_and_a_cumulative_sum(
    n: int, share: float, kind: str, dtype: torch.dtype
) -> None:
    scores = scores_of(kind, n, dtype)
    budget = share * float(scores.double().sum())
    for most in (n, n // 3):
        found = smallest_within_budget([scores], everything(scores), n, budget, most)
        assert found.num_scores == expected_count(scores, budget, most)
        smallest = scores.sort().values[: found.num_scores]
        assert found.total == pytest.approx(float(smallest.double().sum()), rel=1e-12)
        assert found.threshold is not None
        (removed,) = smallest_up_to(
            [scores], everything(scores), found.threshold, found.excess_ties
        )
        assert torch.equal(removed.nonzero()[:, 0], smallest_of_ties_last(scores, found.num_scores))


def test_scores_that_do_not_take_part_are_ignored() -> None:
    scores = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(200_000) % 3 == 0
    budget = 0.2 * float(scores[mask].double().sum())
    parts, masks = scores.split([90_000, 110_000]), mask.split([90_000, 110_000])
    num = int(mask.sum())
    found = smallest_within_budget(parts, masks, num, budget, num)
    assert found.num_scores == expected_count(scores[mask], budget, num)
    removed = list(smallest_up_to(parts, masks, found.threshold, found.excess_ties))
    together = torch.cat(removed)
    assert together.sum() == found.num_scores
    assert mask[together].all()
    assert scores[together].max() == found.threshold


def test_an_infinite_budget_is_limited_by_the_count_alone() -> None:
    for n in (10, 100_000):
        scores = torch.arange(1.0, n + 1)
        found = smallest_within_budget([scores], everything(scores), n, math.inf, 1)
        assert found == (1, 1.0, 1.0, 0)
        assert smallest_within_budget([scores], everything(scores), n, math.inf, n).num_scores == n


def test_negative_zero_counts_as_zero() -> None:
    scores = torch.cat([torch.full((100_000,), -0.0), torch.ones(3)])
    assert (
        smallest_within_budget([scores], everything(scores), 100_003, 1.5, 100_003).num_scores
        == 100_001
    )


def test_a_sample_that_is_not_representative_costs_time_only() -> None:
    # Every second of 8,192 scores is sampled, and every 17th of 70,000.
    for n, step in ((8_192, 2), (70_000, 17)):
        for in_sample, elsewhere in ((1e-3, 1.0), (1.0, 1e-3)):
            scores = torch.full((n,), elsewhere) + torch.arange(n) * 1e-9
            scores[::step] = in_sample
            for share in (0.001, 0.3, 0.9):
                budget = share * float(scores.double().sum())
                found = smallest_within_budget([scores], everything(scores), n, budget, n)
                assert found.num_scores == expected_count(scores, budget, n)


def test_scores_near_the_largest_float_do_not_overflow() -> None:
    scores = torch.full((10_000,), 1e300, dtype=torch.float64)
    found = smallest_within_budget([scores], everything(scores), 10_000, 5e302, 10_000)
    assert found.num_scores in (499, 500)  # 500 terms add up to 5e302 but for rounding
