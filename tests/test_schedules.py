from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synflow_pl.schedules import as_density, keeps, kept_weights


def test_a_float_is_read_as_its_shortest_decimal() -> None:
    assert as_density(0.1) == Fraction(1, 10)
    assert as_density(1) == 1
    assert as_density(Fraction(1, 3)) == Fraction(1, 3)


@pytest.mark.parametrize("wrong", [0, -0.1, 1.5, float("nan"), float("inf"), True, "half", None])
def test_an_impossible_density_is_named(wrong: object) -> None:
    with pytest.raises(ValueError, match=f"density: '?{wrong}'?"):
        as_density(wrong)  # type: ignore[arg-type]


def test_kept_weights_are_exact_where_floats_are_not() -> None:
    # In floats (1 - 0.9) * 10 is 0.99999..., which would keep all ten.
    assert kept_weights(10, as_density(0.9)) == 9
    assert kept_weights(14_715_584, as_density(0.01)) == 147_156
    assert kept_weights(7, Fraction(1, 1000)) == 1


def test_the_exponential_schedule_takes_the_same_fraction_in_each_round() -> None:
    assert keeps("exponential", Fraction(1, 100), 2, [10_000])[0] == [1000, 100]


def test_the_linear_schedule_takes_the_same_number_in_each_round() -> None:
    assert keeps("linear", Fraction(1, 5), 4, [100])[0] == [80, 60, 40, 20]


def test_the_cubic_schedule_takes_the_most_first() -> None:
    # 0.2 + 0.8 (3/4)^3 = 0.5375, 0.2 + 0.8 / 8 = 0.3, 0.2 + 0.8 / 64 = 0.2125, 0.2.
    assert keeps("cubic", Fraction(1, 5), 4, [10_000])[0] == [5375, 3000, 2125, 2000]


@given(
    total=st.integers(1, 10**7),
    density=st.floats(1e-6, 1),
    rounds=st.integers(1, 50),
    schedule=st.sampled_from(["exponential", "linear", "cubic"]),
)
def test_a_schedule_never_grows_and_ends_at_the_exact_number(
    total: int, density: float, rounds: int, schedule: str
) -> None:
    target = as_density(density)
    kept = keeps(schedule, target, rounds, [total])[0]
    assert len(kept) == rounds
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == kept_weights(total, target)
    assert 1 <= kept[-1] <= kept[0] <= total


def test_parts_that_compete_apart_share_what_is_kept() -> None:
    # Of 30, 20 and 10 weights at 1/4: 15 in all, the first eight of 7.5; up to the second 12.5, so
    # 13 - 8; up to the third 15 - 13.
    assert keeps("exponential", Fraction(1, 4), 1, [30, 20, 10]) == [[8], [5], [2]]


@given(
    sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=6),
    density=st.floats(1e-4, 1),
    rounds=st.integers(1, 10),
    schedule=st.sampled_from(["exponential", "linear", "cubic"]),
)
def test_parts_never_grow_and_are_exact_together_and_to_one_weight_each(
    sizes: list[int], density: float, rounds: int, schedule: str
) -> None:
    target = as_density(density)
    parts = keeps(schedule, target, rounds, sizes)
    assert sum(part[-1] for part in parts) == kept_weights(sum(sizes), target)
    for size, part in zip(sizes, parts, strict=True):
        assert part == sorted(part, reverse=True)
        assert size >= part[0]
        assert abs(part[-1] - target * size) < 1
    assert parts[0][-1] >= 1
