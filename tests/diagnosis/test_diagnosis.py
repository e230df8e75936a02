"""What a diagnosis says, and how it is read."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from synflow_pl import Masks, diagnose
from synflow_pl.flow import example_of
from synflow_pl.flow.connectivity import Connectivity
from synflow_pl.masks import prunable


def masks(**rows: list[list[int]]) -> Masks:
    return Masks(
        {
            name.replace("_", ".") + ".weight": torch.tensor(mask).bool()
            for name, mask in rows.items()
        }
    )


def chain(layers: int = 3) -> nn.Module:
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))


FULL = [[1, 1], [1, 1]]


# -- units


@pytest.mark.parametrize(
    ("layer", "shape", "alive", "inputs", "units"),
    [
        (nn.Linear(3, 2), (3,), [(0, 1)], (1, 3), (1, 2)),
        (
            nn.Conv2d(4, 4, 1, groups=2),
            (4, 1, 1),
            [(2, 1), (3, 1)],
            (1, 4),
            (2, 4),
        ),  # both read the last channel, of the second group
        (nn.Conv2d(4, 4, 1, groups=2), (4, 1, 1), [(0, 0), (2, 0)], (2, 4), (2, 4)),
        (nn.Conv2d(4, 4, 3, groups=4), (4, 3, 3), [(1, 0)], (1, 4), (1, 4)),
        # (in, out / groups): of the second group the first input feeds its second unit, the other
        # one both.
        (
            nn.ConvTranspose2d(4, 4, 1, groups=2),
            (4, 1, 1),
            [(2, 1), (3, 0), (3, 1)],
            (2, 4),
            (2, 4),
        ),
    ],
)
def test_living_inputs_are_read_and_living_units_fed_by_a_living_weight(
    layer: nn.Module,
    shape: tuple[int, ...],
    alive: list[tuple[int, int]],
    inputs: tuple[int, int],
    units: tuple[int, int],
) -> None:
    mask = torch.zeros(layer.weight.shape, dtype=torch.bool)
    for at in alive:
        mask[at] = True
    (told,) = diagnose(nn.Sequential(layer), Masks({"0.weight": mask}), input_shape=shape).layers
    assert (told.living_inputs, told.inputs) == inputs
    assert (told.living_units, told.units) == units


# -- death


@pytest.mark.parametrize(
    ("rows", "where", "why"),
    [
        ([FULL, [[0, 0], [0, 0]], FULL], "1.weight", "has no weight left"),
        # The first layer feeds unit 0, the second reads unit 1: all hold weights.
        (
            [[[1, 1], [0, 0]], [[0, 1], [0, 1]], FULL],
            "1.weight",
            "has weights left, but none on a path from the input",
        ),
        # The last reads nothing that the second, which is reached, feeds.
        (
            [FULL, [[1, 1], [0, 0]], [[0, 1], [0, 1]]],
            "2.weight",
            "has weights left, but none on a path from the input",
        ),
        ([[[0, 0], [0, 0]], FULL, FULL], "0.weight", "has no weight left"),
    ],
)
def test_a_dead_network_names_the_layer_past_which_no_path_leads(
    rows: list[list[list[int]]], where: str, why: str
) -> None:
    told = diagnose(
        chain(), masks(**{str(index): mask for index, mask in enumerate(rows)}), input_shape=(2,)
    )
    assert (told.alive, told.broken, told.effective) == (False, where, 0)
    assert told.collapse == (
        f"the network is dead: no path of kept weights leads from input to output at density {told.density:.6g};"
        f" it breaks at '{where}', which {why}; try more rounds, a larger density, another scope (local)"
    )
    assert {layer.flow for layer in told.layers} == {0}
    assert told.conservation_error == 0
    assert "conservation error unknown, since nothing flows" in told.table()
    assert f"no path leads past {where}" in told.table()


class Residual(nn.Module):
    """A block with a projection beside two layers, read by a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.shortcut, self.head = (
            nn.Linear(2, 2) for _ in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.two(torch.relu(self.one(x))) + self.shortcut(x))


def test_where_branches_break_it_is_the_last_of_them_that_was_reached() -> None:
    none = [[0, 0], [0, 0]]
    found = masks(stem=FULL, one=none, two=FULL, shortcut=none, head=FULL)
    told = diagnose(Residual(), found, input_shape=(2,))
    assert (
        told.broken == "shortcut.weight"
    )  # one.weight breaks a branch, and the other was still to come
    alive = diagnose(
        Residual(), masks(stem=FULL, one=none, two=FULL, shortcut=FULL, head=FULL), input_shape=(2,)
    )
    assert (alive.alive, alive.broken) == (True, None)
    assert alive.collapse == "layers with no weight left, though a path remains: one.weight"


def test_a_living_network_is_not_broken() -> None:
    network = chain()
    told = diagnose(network, masks(**{"0": FULL, "1": FULL, "2": FULL}), input_shape=(2,))
    assert (told.alive, told.broken, told.collapse, told.collapsed) == (True, None, None, [])
    assert (
        Connectivity(network, example_of(network, (2,), None)).first_disconnected(
            masks(**{"0": FULL, "1": FULL, "2": FULL})
        )
        is None
    )


# -- the whole


def test_compression_is_the_weights_over_those_kept() -> None:
    told = diagnose(
        chain(),
        masks(**{"0": FULL, "1": [[1, 0], [0, 0]], "2": [[1, 0], [0, 0]]}),
        input_shape=(2,),
    )
    assert (told.kept, told.effective, told.total, told.compression) == (6, 4, 12, 2)


@pytest.mark.parametrize(
    ("module", "shape", "kinds"),
    [
        (
            nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.LeakyReLU()),
            (1, 4, 4),
            {},
        ),
        (
            nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.GELU()),
            (1, 4, 4),
            {"1": "normalisation", "2": "nonlinearity"},
        ),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.LayerNorm(2), nn.ReLU6())),
            (2,),
            {"1.0": "normalisation", "1.1": "nonlinearity"},
        ),
        (nn.Sequential(nn.Linear(2, 4), nn.GLU()), (2,), {"1": "gate"}),
    ],
)
def test_modules_that_break_homogeneity_are_named(
    module: nn.Module, shape: tuple[int, ...], kinds: dict[str, str]
) -> None:
    ones = Masks(
        {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(module).items()}
    )
    assert diagnose(module, ones, input_shape=shape).inhomogeneous == kinds


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.squeeze = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x * self.squeeze(x)


def test_a_gate_goes_by_the_module_that_multiplies_and_counts_as_a_dense_connection() -> None:
    told = diagnose(Squeezed(), masks(layer=FULL, squeeze_0=FULL), input_shape=(2,))
    assert told.inhomogeneous == {"squeeze.1": "nonlinearity", "Squeezed": "gate"}
    assert told.notes == (
        "gates and attention count as dense connections: what weighs a signal is connected to all of it",
        "4 of 12 parameters take no part and stay dense: biases, gains and shifts (4)",
    )
    assert all(note in told.table() for note in told.notes)


# -- how it is read


def test_the_table_is_the_same_wherever_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    told = diagnose(
        chain(),
        masks(**{"0": FULL, "1": [[1, 0], [0, 0]], "2": [[1, 0], [0, 0]]}),
        input_shape=(2,),
    )
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = told.table().splitlines()
    assert told.table().isascii()
    assert "\x1b" not in told.table()
    assert lines[0].split() == (
        "parameter shape weights kept effective density eff. density live in live out FLOPs sparse score flow".split()
    )
    assert lines[3].split()[:9] == [
        "1.weight",
        "2x2",
        "4",
        "1",
        "1",
        "0.2500",
        "0.2500",
        "1/2",
        "1/2",
    ]
    assert lines[3].split()[9:11] == ["8", "2"]
    assert lines[6].split() == ["all", "12", "6", "4", "0.5000", "0.3333", "alive", "24", "12"]
    assert (
        "compression 2; FLOPs 24 dense, 12 sparse; conservation error 0 (but for rounding)" in lines
    )


def test_rich_prints_it_in_colour_where_a_terminal_can() -> None:
    told = diagnose(
        chain(), masks(**{"0": FULL, "1": [[0, 0], [0, 0]], "2": FULL}), input_shape=(2,)
    )
    console = Console(force_terminal=True, color_system="standard", width=200)
    with console.capture() as captured:
        console.print(told)
    assert "\x1b[31m" in captured.get()  # a layer that does nothing is red


def test_the_csv_has_a_line_for_each_layer_with_all_that_is_known(tmp_path: Path) -> None:
    told = diagnose(
        chain(),
        masks(**{"0": FULL, "1": [[1, 0], [0, 0]], "2": [[1, 0], [0, 0]]}),
        input_shape=(2,),
    )
    told.to_csv(tmp_path / "deep" / "table.csv")
    with open(tmp_path / "deep" / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["0.weight", "1.weight", "2.weight"]
    wanted = "shape total kept density effective effective_density units living_units inputs living_inputs flops sparse_flops flow"
    assert set(rows[0]) == {"name", "score_mean", "score_variance", "score_sum", *wanted.split()}
    for row, layer in zip(rows, told.layers, strict=True):
        assert (int(row["kept"]), int(row["effective"]), int(row["flops"])) == (
            layer.kept,
            layer.effective,
            layer.flops,
        )
        assert float(row["score_sum"]) == layer.score_sum
    assert os.listdir(tmp_path / "deep") == ["table.csv"]  # nothing temporary is left


def test_the_json_has_the_layers_and_the_whole(tmp_path: Path) -> None:
    told = diagnose(Squeezed(), masks(layer=[[1, 0], [0, 0]], squeeze_0=FULL), input_shape=(2,))
    told.to_json(tmp_path / "table.json")
    content = json.loads((tmp_path / "table.json").read_text())
    for name in (
        "kept",
        "effective",
        "total",
        "alive",
        "flops",
        "sparse_flops",
        "density",
        "effective_density",
        "compression",
    ):
        assert content[name] == getattr(told, name)
    assert content["conservation_error"] == told.conservation_error
    assert content["inhomogeneous"] == told.inhomogeneous
    assert content["layers"][0]["shape"] == [2, 2]
    assert content["layers"][0]["score_sum"] == told.layers[0].score_sum
    assert os.listdir(tmp_path) == ["table.json"]


def test_a_file_that_cannot_be_written_whole_does_not_replace_the_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = diagnose(chain(), masks(**{"0": FULL, "1": FULL, "2": FULL}), input_shape=(2,))
    told.to_csv(tmp_path / "table.csv")
    before = (tmp_path / "table.csv").read_text()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        told.to_csv(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == before
    assert os.listdir(tmp_path) == ["table.csv"]


class Spectrum(nn.Module):
    """Operations without a rule, of which what a stand-in is off by cannot be computed on the flow,
    or is nothing of nothing.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.head, self.kind = nn.Linear(8, 8), nn.Linear(8, 2), kind

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.kind == "singular":
            x = x + torch.linalg.inv(x.expand(8, 8) + torch.eye(8)).sum(0, keepdim=True)
        else:
            x = (
                x + torch.frac(x) * 0
                if self.kind == "zero"
                else x + torch.logit(torch.sigmoid(x).frac())
            )
        return self.head(x)


@pytest.mark.parametrize("kind", ["singular", "zero", "infinite"])
def test_a_stand_in_whose_error_cannot_be_computed_is_named_without_a_figure(kind: str) -> None:
    told = diagnose(
        Spectrum(kind), masks(layer=[[1] * 8] * 8, head=[[1] * 8] * 2), input_shape=(8,)
    )
    (note,) = (note for note in told.notes if note.startswith("operations without a rule"))
    assert "nan" not in note
    assert "inf" not in note
