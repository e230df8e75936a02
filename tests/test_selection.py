from __future__ import annotations

import pytest
import torch

from synflow_pl.order_statistics import smallest


def test_smallest_returns_the_ascending_indices_of_the_smallest_scores() -> None:
    assert smallest(torch.tensor([3.0, 1.0, 2.0, 5.0]), 2).tolist() == [1, 2]


def test_of_equal_scores_smallest_selects_the_later_ones() -> None:
    assert smallest(torch.tensor([1.0, 1.0, 1.0, 0.0]), 2).tolist() == [2, 3]
    assert smallest(torch.ones(5), 3).tolist() == [2, 3, 4]


@pytest.mark.parametrize("count", [0, 4])
def test_smallest_can_select_no_score_and_all_scores(count: int) -> None:
    assert smallest(torch.tensor([4.0, 3.0, 2.0, 1.0]), count).tolist() == list(range(count))


@pytest.mark.parametrize("n", [1, 10, 5_000, 300_000])
@pytest.mark.parametrize("share", [0.001, 0.045, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["normal", "many ties", "sorted", "heavy tail"])
def test_smallest_agrees_with_a_stable_sort(n: int, share: float, kind: str) -> None:
    scores = torch.randn(n, generator=torch.Generator().manual_seed(n))
    if kind == "many ties":
        scores = (scores * 3).round()
    elif kind == "sorted":
        scores = scores.sort().values
    elif kind == "heavy tail":
        scores = scores.double().exp().pow(30).float()
    count = int(share * n)
    # A stable sort of the reversed scores puts the later of equal scores first.
    expected = n - 1 - scores.flip(0).argsort(stable=True)[:count]
    assert smallest(scores, count).tolist() == expected.sort().values.tolist()


def test_smallest_is_exact_if_the_sample_is_not_representative() -> None:
    # Every sampled score is large, so the bracket lies far above the smallest scores.
    scores = torch.rand(1_000_000)
    scores[::256] = 10.0
    expected = (scores < scores.sort().values[1000]).nonzero().squeeze(1)
    assert smallest(scores, 1000).tolist() == expected.tolist()


def test_infinite_scores_are_selected_last() -> None:
    scores = torch.tensor([torch.inf, 2.0, torch.inf, 1.0])
    assert smallest(scores, 2).tolist() == [1, 3]
