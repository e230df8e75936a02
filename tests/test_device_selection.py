from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from synflow_pl import device_selection
from synflow_pl.budget_selection import smallest_within_budget
from synflow_pl.device_selection import smallest_mask, smallest_within_budget_on_device
from synflow_pl.order_statistics import smallest_of_many
from tests.test_budget_selection import scores_of

# Ties, both zeros, infinities, denormal numbers, neighbours, and both signs.
VALUES = [-math.inf, -2.0, -1e-42, -0.0, 0.0, 1e-42, 1.0, 1.0000001, 2.0, 3e38, math.inf]


def selected_by_sorting(parts: list[Tensor], masks: list[Tensor], count: int) -> list[Tensor]:
    """Return masks of the ``count`` lowest candidates; of equal ones the last are selected."""
    order = sorted(
        (float(part[at]), -number, -at)
        for number, part in enumerate(parts)
        for at in range(len(part))
        if masks[number][at]
    )
    selected = [torch.zeros_like(mask) for mask in masks]
    for _, number, at in order[:count]:
        selected[-number][-at] = True
    return selected


@settings(deadline=None)
@given(st.data())
def test_the_masks_are_those_of_a_sort_for_any_scores(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    sizes = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=4))
    parts = [
        torch.tensor(data.draw(st.lists(st.sampled_from(VALUES), min_size=n, max_size=n)))
        .reshape(n)
        .to(dtype)
        for n in sizes
    ]
    masks = [
        torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool)
        for n in sizes
    ]
    total = sum(int(mask.sum()) for mask in masks)
    count = data.draw(st.integers(0, total))
    found = smallest_mask(parts, masks, count)
    for mask, expected in zip(found, selected_by_sorting(parts, masks, count), strict=True):
        assert torch.equal(mask, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["normal", "rounded", "constant"])
@pytest.mark.parametrize("fraction", [0, 0.001, 0.5, 1])
def test_many_scores_are_selected_as_on_the_cpu(
    dtype: torch.dtype, kind: str, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_selection, "_CHUNK", 10_000)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(70_001, generator=generator, dtype=dtype)
    if kind != "normal":
        scores = (scores * 3).round() if kind == "rounded" else torch.ones_like(scores)
    parts = list(scores.split([30_000, 1, 40_000]))
    masks = [torch.rand(part.shape, generator=generator) < 0.7 for part in parts]
    total = sum(int(mask.sum()) for mask in masks)
    count = int(fraction * total)
    found = smallest_mask(parts, masks, count)
    for mask, indices in zip(found, smallest_of_many(parts, masks, total, count), strict=True):
        assert torch.equal(mask.nonzero().squeeze(1), indices)


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.01, 0.5, 0.99, 2.0])
@pytest.mark.parametrize("kind", ["uniform", "many ties", "equal", "heavy tail", "mostly zero"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_many_scores_fit_into_a_budget_as_on_the_cpu(
    share: float, kind: str, dtype: torch.dtype
) -> None:
    n = 100_000
    scores = scores_of(kind, n, dtype)
    parts = list(scores.split([20_000, 80_000]))
    masks = [torch.arange(part.numel()) % 3 != 0 for part in parts]
    budget = share * float(scores.double().sum())
    for most in (n // 3, sum(int(mask.sum()) for mask in masks)):
        num_candidates = sum(int(mask.sum()) for mask in masks)
        expected = smallest_within_budget(parts, masks, num_candidates, budget, most)
        found = smallest_within_budget_on_device(parts, masks, budget, most)
        assert found.num_scores == expected.num_scores
        assert found.total == pytest.approx(expected.total, rel=1e-12)


def test_an_infinite_budget_is_limited_by_the_count_alone() -> None:
    scores = torch.arange(1.0, 11)
    masks = [torch.ones(10, dtype=torch.bool)]
    assert smallest_within_budget_on_device([scores], masks, math.inf, 1)[:2] == (1, 1.0)
    assert smallest_within_budget_on_device([scores], masks, math.inf, 10).num_scores == 10
