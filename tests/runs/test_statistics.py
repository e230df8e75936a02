"""Statistics over seeds, against printed tables and sums computed by hand."""

from __future__ import annotations

import math

import pytest

from synflow_pl.runs.statistics import paired, quantile, summarise

# Two-sided 95 % quantiles of a printed table of Student's t.
PRINTED = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    9: 2.262,
    10: 2.228,
    29: 2.045,
    30: 2.042,
    120: 1.980,
}


@pytest.mark.parametrize(("freedom", "printed"), PRINTED.items())
def test_quantiles_of_student_s_t_are_those_of_the_printed_table(
    freedom: int, printed: float
) -> None:
    assert quantile(freedom) == pytest.approx(printed, abs=5e-4)


def test_three_seeds_have_mean_sample_deviation_and_interval() -> None:
    summary = summarise([1.0, 2.0, 3.0])
    assert summary is not None
    assert (summary.count, summary.mean, summary.deviation) == (3, 2.0, 1.0)
    half = 4.3027 / math.sqrt(3)
    assert summary.interval == pytest.approx((2 - half, 2 + half), abs=1e-4)


def test_the_interval_of_an_accuracy_ends_at_0_and_1() -> None:
    # The mean is 2/3, the deviation 1/sqrt(3), and half of the width 4.3027/3.
    summary = summarise([0.0, 1.0, 1.0], (0, 1))
    assert summary is not None
    assert summary.interval == (0, 1)
    summary = summarise([0.1, 0.1, 0.1], (0, 1))
    assert summary is not None
    assert summary.interval == pytest.approx((0.1, 0.1))


def test_one_seed_has_a_mean_without_a_spread_and_no_seeds_have_no_summary() -> None:
    summary = summarise([0.5])
    assert summary is not None
    assert (summary.mean, summary.deviation, summary.interval) == (0.5, None, None)
    assert summarise([]) is None


def test_pairs_are_compared_over_the_seeds_that_both_have() -> None:
    # The differences are 3 - 1 and 5 - 4; seeds 2 and 7 are in one sample only.
    difference = paired({0: 3.0, 1: 5.0, 2: 100.0}, {0: 1.0, 1: 4.0, 7: 100.0})
    assert difference is not None
    assert (difference.count, difference.mean) == (2, 1.5)
    assert difference.deviation == pytest.approx(math.sqrt(0.5))
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_a_constant_difference_has_no_spread_although_accuracies_differ_between_seeds() -> None:
    difference = paired({0: 1.5, 1: 9.5, 2: 4.5}, {0: 1.0, 1: 9.0, 2: 4.0})
    assert difference is not None
    assert (difference.mean, difference.deviation, difference.interval) == (0.5, 0.0, (0.5, 0.5))
