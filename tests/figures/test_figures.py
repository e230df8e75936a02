"""Contents of the figures that can be counted: bars, lines, labels and files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from synflow_pl.figures import (
    Curve,
    accuracy_against,
    accuracy_grid,
    density_per_layer,
    layers_by_pruner,
    layers_over_rounds,
    unit_scores,
)
from synflow_pl.figures.style import axes, blank, curve, legend, save, shades

NAMES = ["first.weight", "second.weight", "third.weight"]


def bars() -> Figure:
    return density_per_layer(NAMES, [0.5, 0.1, 0], 0.2, [0.5, 0.05, 0])


def lines() -> Figure:
    return layers_over_rounds(
        [1, 2, 4],
        {"first.weight": [8, 8, 7], "second.weight": [92, 42, 18], "third.weight": [100, 50, 0]},
    )


def dots() -> Figure:
    return unit_scores({"first.weight": ([1, 2, 0], [1, 20, 5]), "second.weight": ([3], [-3])})


def only(figure: Figure) -> Axes:
    (drawn,) = figure.axes
    return drawn


@pytest.mark.parametrize("draw", [bars, lines, dots])
def test_axes_are_labelled_with_their_quantity(draw: Callable[[], Figure]) -> None:
    drawn = only(draw())
    assert drawn.get_xlabel().split()[0].strip(":|") in ("density", "compression", "sum")
    assert drawn.get_ylabel() or [label.get_text() for label in drawn.get_yticklabels()] == [
        "first",
        "second",
        "third",
    ]


def test_each_layer_has_a_bar_for_its_density_and_one_for_its_effective_density() -> None:
    drawn = only(bars())
    ends = [bar.get_x() + bar.get_width() for bar in drawn.patches]
    floor = 0.05 / 3
    assert ends == pytest.approx([0.5, 0.1, floor, 0.5, 0.05, floor])
    assert [text.get_text() for text in drawn.texts] == [
        "50 %",
        "10 %",
        "none",
        "50 %",
        "5 %",
        "none",
    ]


def test_the_line_of_a_collapsed_layer_ends_in_a_cross_at_its_last_kept_weights() -> None:
    first, second, third, cross = only(lines()).lines
    assert first.get_xydata().tolist() == [[1, 8], [2, 8], [4, 7]]
    assert second.get_xydata().tolist() == [[1, 92], [2, 42], [4, 18]]
    assert third.get_xydata().tolist() == [[1, 100], [2, 50]]
    assert (cross.get_xydata().tolist(), cross.get_marker()) == ([[2, 50]], "x")


def test_pruners_have_a_panel_each_on_common_axes_and_one_legend_of_layers() -> None:
    few = ([1, 10], {"a.weight": [8, 8], "b.weight": [92, 2]})
    many = ([1, 10, 100], {"a.weight": [8, 4, 0], "b.weight": [92, 6, 1]})
    figure = layers_by_pruner({"first": few, "second": many})
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("first", "second")
    assert [len(drawn.lines) for drawn in (left, right)] == [
        2,
        3,
    ]  # a cross before the collapse of a layer
    assert (left.get_xlim(), left.get_ylim()) == (right.get_xlim(), right.get_ylim())
    assert left.get_xlim()[1] >= 100
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_a_legend_of_too_many_layers_names_the_first_and_the_last() -> None:
    figure = layers_by_pruner(
        {"one": ([1, 10], {f"layer{i}.weight": [100, 10] for i in range(40)})}
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["layer0", "layer39"]


def test_accuracies_are_drawn_in_percent_with_clipped_bands_and_a_dense_line() -> None:
    few = Curve("few", 0, (10, 1), (0.5, 0.9), (0.6, 0.01))
    drawn = only(
        accuracy_against(
            "compression",
            [few, Curve("theirs", 0, (1,), (0.8,), (0,), published=True)],
            (0.95, 0.01),
        )
    )
    dense, line, theirs = drawn.lines
    assert [text.get_text() for text in drawn.get_legend().get_texts()] == [
        "dense",
        "few",
        "theirs",
    ]  # type: ignore[union-attr]
    assert dense.get_ydata()[0] == 95  # type: ignore[index]
    assert line.get_xydata().tolist() == [[1, 90], [10, 50]]
    band = drawn.collections[0].get_paths()[0].vertices[:, 1]
    assert (min(band), max(band)) == (0, 100)
    assert (theirs.get_color(), theirs.get_linestyle(), line.get_linestyle()) == (
        line.get_color(),
        ":",
        "-",
    )
    assert not drawn.xaxis_inverted()
    assert only(accuracy_against("FLOPs", [few], falling=True)).xaxis_inverted()


@pytest.mark.parametrize(
    ("low", "high", "minor", "major"),
    [
        (8e6, 4.2e7, ["2e7"], ["1e7"]),
        (2.5e5, 8e6, ["5e5", "2e6", "5e6"], ["1e6"]),
        (1, 30, [], ["1", "10"]),
        (2, 8, ["2", "5"], []),
    ],
)
@pytest.mark.parametrize("falling", [False, True])
def test_a_short_logarithmic_axis_has_labels_at_2_and_5(
    low: float, high: float, minor: list[str], major: list[str], falling: bool
) -> None:
    figure = blank()
    drawn = axes(figure, "FLOPs", "accuracy", log="x")
    drawn.set_xlim(*((high, low) if falling else (low, high)))
    figure.canvas.draw()

    def labelled(minor: bool) -> list[float]:
        labels = [label for label in drawn.get_xticklabels(minor=minor) if label.get_text()]
        places = sorted(label.get_position()[0] for label in labels)
        return [place for place in places if low <= place <= high]

    assert labelled(minor=True) == pytest.approx([float(text) for text in minor])
    assert labelled(minor=False) == pytest.approx([float(text) for text in major])


def test_a_grid_orders_pruners_by_the_densities_that_all_have_and_shades_each_column() -> None:
    rows = {
        "low": [(0.5, 0.01), (0.95, None)],
        "best": [(0.9, 0.002), None],
        "middle": [(0.8, 0.0), (0.1, 0.3)],
    }
    drawn = only(accuracy_grid([0.1, 0.01], rows, title="digits"))
    assert [label.get_text() for label in drawn.get_yticklabels()] == ["best", "middle", "low"]
    assert [label.get_text() for label in drawn.get_xticklabels()] == ["0.1", "0.01"]
    texts = {text.get_position(): text.get_text() for text in drawn.texts}
    assert texts == {
        (0, 0): "90.0 ± 0.2",
        (0, 1): "80.0 ± 0.0",
        (0, 2): "50.0 ± 1.0",
        (1, 1): "10.0 ± 30.0",
        (1, 2): "95.0",
    }
    # At 0.1 the median is 0.1 below the best, so 0.2 below it and less is white.
    best, middle, low = (
        sum(drawn.collections[i].get_facecolor()[0][:3])
        for i in range(3)  # type: ignore[index]
    )
    assert best < middle < low
    with pytest.raises(ValueError, match="one: 1 entries for 2 densities"):
        accuracy_grid([0.1, 0.01], {"one": [(0.5, None)]})


def test_units_are_dots_at_incoming_and_outgoing_sums_beside_a_diagonal() -> None:
    first, second, diagonal = only(dots()).lines
    assert first.get_xydata().tolist() == [[1, 1], [2, 20]]
    assert second.get_xydata().tolist() == [[3, 3]]
    assert (first.get_markerfacecolor() != "none", second.get_markerfacecolor()) == (True, "none")
    assert diagonal.get_linestyle() == "--"


@pytest.mark.parametrize("layers", [3, 14, 75])
def test_every_line_is_in_the_legend_and_the_legend_is_inside_the_figure(layers: int) -> None:
    figure = layers_over_rounds(
        [1, 10, 100],
        {f"stage{i // 20}.block{i}.conv1.weight": [1000, 100, 10 + i] for i in range(layers)},
    )
    figure.draw_without_rendering()
    drawn_legend = only(figure).get_legend()
    assert drawn_legend is not None
    assert len(drawn_legend.get_texts()) == layers
    inside, whole = drawn_legend.get_window_extent(), figure.bbox
    assert inside.x1 <= whole.x1
    assert inside.y0 >= whole.y0
    assert inside.y1 <= whole.y1


def test_curves_differ_in_colour_and_dash_or_marker() -> None:
    looks = [curve(index) for index in range(28)]
    assert len({(look["color"], look["linestyle"]) for look in looks}) == 28
    assert len({(look["linestyle"], look["marker"]) for look in looks[:8]}) == 8


def test_shades_of_layers_get_lighter_with_depth_in_grey_too() -> None:
    grey = [0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue, _ in shades(20)]
    assert grey == sorted(grey)
    assert grey[-1] < 0.75


def test_a_figure_is_saved_as_two_files_and_no_others(tmp_path: Path) -> None:
    written = save(lines(), tmp_path / "run-density0.05" / "lines")
    assert [path.name for path in written] == ["lines.png", "lines.pdf"]
    assert sorted(path.name for path in written[0].parent.iterdir()) == ["lines.pdf", "lines.png"]
    assert imread(written[0]).shape[1] > 900
    assert written[1].read_bytes().startswith(b"%PDF")


def test_equal_figures_give_equal_bytes(tmp_path: Path) -> None:
    first, second = save(bars(), tmp_path / "first"), save(bars(), tmp_path / "second")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_figure_that_cannot_be_written_leaves_the_previous_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(lines(), tmp_path / "lines")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(self: Figure, file: IO[bytes], **_: object) -> None:
        file.write(b"half a pict")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="no space"):
        save(bars(), tmp_path / "lines")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_legend_accepts_the_options_of_matplotlib() -> None:
    drawn = axes(blank(), "time / s", "loss", log="y")
    drawn.plot([1, 2], [1, 0.5], label="one", **curve(0))
    legend(drawn, ncols=2)
    assert drawn.get_yscale() == "log"
    assert [text.get_text() for text in drawn.get_legend().get_texts()] == ["one"]  # type: ignore[union-attr]


def test_the_package_is_imported_without_matplotlib_and_drawn_without_pyplot() -> None:
    code = (
        "import sys, synflow_pl, synflow_pl.figures, synflow_pl.pruning\n"
        "assert 'matplotlib' not in sys.modules, 'matplotlib'\n"
        "synflow_pl.figures.density_per_layer(['a'], [0.5], 0.5)\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
