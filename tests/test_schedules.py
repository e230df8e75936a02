from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synflow_pl.schedules import as_density, kept_per_round, kept_weights


def test_a_float_is_read_as_its_shortest_decimal() -> None:
    assert as_density(0.1) == Fraction(1, 10)
    assert as_density(1) == 1
    assert as_density(Fraction(1, 3)) == Fraction(1, 3)


@pytest.mark.parametrize("wrong", [0, -0.1, 1.5, float("nan"), float("inf"), True, "half", None])
def test_an_impossible_density_is_an_error_that_names_it(wrong: object) -> None:
    with pytest.raises(ValueError, match=f"density: '?{wrong}'?"):
        as_density(wrong)  # type: ignore[arg-type]


def test_kept_weights_are_exact_where_floats_are_not() -> None:
    # In floats (1 - 0.9) * 10 is 0.99999..., which would keep all ten.
    assert kept_weights(10, as_density(0.9)) == 9
    assert kept_weights(14_715_584, as_density(0.01)) == 147_156
    assert kept_weights(7, Fraction(1, 1000)) == 1


def test_the_exponential_schedule_removes_the_same_fraction_in_each_round() -> None:
    assert kept_per_round("exponential", Fraction(1, 100), 2, [10_000])[0] == [1000, 100]


def test_the_linear_schedule_removes_the_same_number_in_each_round() -> None:
    assert kept_per_round("linear", Fraction(1, 5), 4, [100])[0] == [80, 60, 40, 20]


def test_the_cubic_schedule_removes_the_most_in_the_first_round() -> None:
    # 0.2 + 0.8 (3/4)^3 = 0.5375, 0.2 + 0.8 / 8 = 0.3, 0.2 + 0.8 / 64 = 0.2125, 0.2.
    assert kept_per_round("cubic", Fraction(1, 5), 4, [10_000])[0] == [5375, 3000, 2125, 2000]


@given(
    total=st.integers(1, 10**7),
    density=st.floats(1e-6, 1),
    rounds=st.integers(1, 50),
    schedule=st.sampled_from(["exponential", "linear", "cubic"]),
)
def test_a_schedule_never_increases_and_ends_at_the_exact_number(
    total: int, density: float, rounds: int, schedule: str
) -> None:
    target = as_density(density)
    kept = kept_per_round(schedule, target, rounds, [total])[0]
    assert len(kept) == rounds
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == kept_weights(total, target)
    assert 1 <= kept[-1] <= kept[0] <= total


def test_groups_that_are_ranked_separately_share_the_weights_that_are_kept() -> None:
    # At density 1/4 the cumulative sums of 30, 20 and 10 weights are 7.5, 12.5 and 15, which are
    # rounded up to 8, 13 and 15.
    assert kept_per_round("exponential", Fraction(1, 4), 1, [30, 20, 10]) == [[8], [5], [2]]


@given(
    sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=6),
    density=st.floats(1e-4, 1),
    rounds=st.integers(1, 10),
    schedule=st.sampled_from(["exponential", "linear", "cubic"]),
)
def test_groups_never_grow_are_exact_in_total_and_within_one_weight_each(
    sizes: list[int], density: float, rounds: int, schedule: str
) -> None:
    target = as_density(density)
    groups = kept_per_round(schedule, target, rounds, sizes)
    assert sum(group[-1] for group in groups) == kept_weights(sum(sizes), target)
    for size, group in zip(sizes, groups, strict=True):
        assert group == sorted(group, reverse=True)
        assert size >= group[0]
        assert abs(group[-1] - target * size) < 1
    assert groups[0][-1] >= 1
