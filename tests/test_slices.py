"""Tests of the option --slice: every test is in exactly one slice of the suite."""

from __future__ import annotations

import pytest

from tests.conftest import in_slice, parse_slice


def test_a_slice_is_parsed_as_its_number_and_the_number_of_slices() -> None:
    assert parse_slice("1/1") == (1, 1)
    assert parse_slice("3/12") == (3, 12)


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/3", "1/0", "-1/3", ""])
def test_a_slice_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="1 <= K <= N, for example 3/12"):
        parse_slice(text)


def test_each_test_is_in_exactly_one_slice_and_slices_are_of_similar_size() -> None:
    names = [f"tests/cli/test_recipes.py::test_it[{index}]" for index in range(1200)]
    slices = [[name for name in names if in_slice(name, index, 12)] for index in range(1, 13)]
    assert sorted(name for part in slices for name in part) == sorted(names)
    assert all(60 <= len(part) <= 140 for part in slices)
