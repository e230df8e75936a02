from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from synflow_pl.budget_selection import smallest_within_budget


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
    count, total = smallest_within_budget([scores], everything(scores), budget, n)
    assert count == expected_count(scores, budget, n)
    assert total == pytest.approx(float(scores.double().sort().values[:count].sum()), rel=1e-12)
    most = n // 3
    fewer = smallest_within_budget([scores], everything(scores), budget, most)
    assert fewer.num_scores == expected_count(scores, budget, most)


def test_scores_that_do_not_take_part_are_ignored() -> None:
    scores = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(200_000) % 3 == 0
    budget = 0.2 * float(scores[mask].double().sum())
    parts, masks = scores.split([90_000, 110_000]), mask.split([90_000, 110_000])
    count, _ = smallest_within_budget(parts, masks, budget, int(mask.sum()))
    assert count == expected_count(scores[mask], budget, 200_000)


def test_an_infinite_budget_is_limited_by_the_count_alone() -> None:
    for n in (10, 100_000):
        scores = torch.arange(1.0, n + 1)
        found = smallest_within_budget([scores], everything(scores), math.inf, 1)
        assert found == (1, 1.0)
        assert smallest_within_budget([scores], everything(scores), math.inf, n).num_scores == n


def test_negative_zero_counts_as_zero() -> None:
    scores = torch.cat([torch.full((100_000,), -0.0), torch.ones(3)])
    assert smallest_within_budget([scores], everything(scores), 1.5, 100_003).num_scores == 100_001
