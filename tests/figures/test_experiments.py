"""Figures of the experiments: positions of the dots and lines."""

from __future__ import annotations

import pytest
from matplotlib.axes import Axes

from synflow_pl.figures import layer_averages, magnitude_growth, round_ratios, unit_conservation


def dots(axes: Axes) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for line in axes.lines
        if line.get_linestyle() == "None"
        for x, y in zip(*line.get_data(), strict=True)
    ]


def test_units_are_drawn_at_their_sums_hollow_if_signs_differ_and_left_out_if_zero() -> None:
    figure = unit_conservation(
        {"grasp": [([1.0, -2.0, 0.0], [1.0, 4.0, 1.0])], "synflow": [([3.0], [3.0])]}
    )
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("grasp", "synflow")
    assert dots(first) == [(1, 1), (2, 4)]
    assert [
        line.get_markerfacecolor() == "none"
        for line in first.lines
        if line.get_linestyle() == "None"
    ] == [False, True]
    assert dots(second) == [(3, 3)]
    assert first.get_xlim() == first.get_ylim()


def test_layers_with_equal_totals_lie_on_the_dashed_line() -> None:
    (axes,) = layer_averages({"synflow": [10, 1000]}, {"synflow": [0.6, 0.006]}).axes
    assert dots(axes) == [(0.1, 0.6), (0.001, 0.006)]
    line = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert list(line.get_xdata()) == [0.001, 0.1]
    assert list(line.get_ydata()) == pytest.approx([0.006, 0.6])


def test_layers_are_drawn_before_and_after_training() -> None:
    (axes,) = magnitude_growth([10, 100], {0: [0.2, 0.1], 1: [0.3, 0.05], 2: [0.4, 0.04]}).axes
    assert dots(axes) == [(0.1, 0.2), (0.01, 0.1), (0.1, 0.4), (0.01, 0.04)]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "at initialisation", "after epoch 2", "the same total in each layer",
    ]  # fmt: skip


def test_there_is_a_panel_for_each_schedule_and_a_line_for_each_compression() -> None:
    figure = round_ratios(
        {"linear": {1: {1: 5.0, 10: 3.0}, 2: {1: 9.0}}, "exponential": {1: {1: 5.0, 10: 0.5}}}
    )
    linear, exponential = figure.axes
    curves = [line for line in linear.lines if line.get_label().startswith("compression")]
    assert [list(zip(*line.get_data(), strict=True)) for line in curves] == [
        [(1, 5.0), (10, 3.0)],
        [(1, 9.0)],
    ]
    assert exponential.get_ylim()[0] < 0.5 < 1 < 9 < exponential.get_ylim()[1]
    assert exponential.get_ylim() == linear.get_ylim()
