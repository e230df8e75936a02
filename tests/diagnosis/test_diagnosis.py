"""Tests of the numbers in a diagnosis and of its table, CSV and JSON."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from synflow_pl import Masks, diagnose
from synflow_pl.flow import example_of
from synflow_pl.flow.connectivity import Connectivity
from synflow_pl.prunable_parameters import prunable


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


# -- inputs and units with kept weights


@pytest.mark.parametrize(
    ("layer", "shape", "kept", "inputs", "units"),
    [
        (nn.Linear(3, 2), (3,), [(0, 1)], (1, 3), (1, 2)),
        (
            nn.Conv2d(4, 4, 1, groups=2),
            (4, 1, 1),
            [(2, 1), (3, 1)],
            (1, 4),
            (2, 4),
        ),  # both units read the last channel, which belongs to the second group
        (nn.Conv2d(4, 4, 1, groups=2), (4, 1, 1), [(0, 0), (2, 0)], (2, 4), (2, 4)),
        (nn.Conv2d(4, 4, 3, groups=4), (4, 3, 3), [(1, 0)], (1, 4), (1, 4)),
        # The weight is (in, out / groups). In the second group, the first input has one kept
        # weight, to the second unit, and the second input has kept weights to both units.
        (
            nn.ConvTranspose2d(4, 4, 1, groups=2),
            (4, 1, 1),
            [(2, 1), (3, 0), (3, 1)],
            (2, 4),
            (2, 4),
        ),
    ],
)
def test_inputs_and_units_are_counted_if_they_have_a_kept_weight(
    layer: nn.Module,
    shape: tuple[int, ...],
    kept: list[tuple[int, int]],
    inputs: tuple[int, int],
    units: tuple[int, int],
) -> None:
    mask = torch.zeros(layer.weight.shape, dtype=torch.bool)
    for index in kept:
        mask[index] = True
    (result,) = diagnose(nn.Sequential(layer), Masks({"0.weight": mask}), input_shape=shape).layers
    assert (result.living_inputs, result.inputs) == inputs
    assert (result.living_units, result.units) == units


# -- disconnected networks


@pytest.mark.parametrize(
    ("rows", "where", "why"),
    [
        ([FULL, [[0, 0], [0, 0]], FULL], "1.weight", "has no weight left"),
        # Every layer has kept weights, but the first feeds unit 0 alone, the second reads unit 1.
        (
            [[[1, 1], [0, 0]], [[0, 1], [0, 1]], FULL],
            "1.weight",
            "has weights left, but none on a path from the input",
        ),
        # Paths reach the second layer, which feeds unit 0 alone, and the last layer reads unit 1.
        (
            [FULL, [[1, 1], [0, 0]], [[0, 1], [0, 1]]],
            "2.weight",
            "has weights left, but none on a path from the input",
        ),
        ([[[0, 0], [0, 0]], FULL, FULL], "0.weight", "has no weight left"),
    ],
)
def test_the_diagnosis_of_a_disconnected_network_names_the_layer_past_which_no_path_leads(
    rows: list[list[list[int]]], where: str, why: str
) -> None:
    diagnosis = diagnose(
        chain(), masks(**{str(index): mask for index, mask in enumerate(rows)}), input_shape=(2,)
    )
    assert (diagnosis.alive, diagnosis.broken, diagnosis.effective) == (False, where, 0)
    assert diagnosis.collapse == (
        "the network is dead: no path of kept weights leads from input to output at density"
        f" {diagnosis.density:.6g}; it breaks at '{where}', which {why}; try more rounds, a larger"
        " density, another scope (local)"
    )
    assert {layer.flow for layer in diagnosis.layers} == {0}
    assert diagnosis.conservation_error == 0
    assert "conservation error unknown, since nothing flows" in diagnosis.table()
    assert f"no path leads past {where}" in diagnosis.table()


class Residual(nn.Module):
    """A residual block of two layers with a projection as its shortcut, between stem and head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.shortcut, self.head = (
            nn.Linear(2, 2) for _ in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.two(torch.relu(self.one(x))) + self.shortcut(x))


def test_of_several_disconnected_branches_the_last_in_order_of_execution_is_named() -> None:
    none = [[0, 0], [0, 0]]
    both_cut = masks(stem=FULL, one=none, two=FULL, shortcut=none, head=FULL)
    diagnosis = diagnose(Residual(), both_cut, input_shape=(2,))
    # one.weight cuts the first branch, but the network is disconnected only with the shortcut.
    assert diagnosis.broken == "shortcut.weight"
    connected = diagnose(
        Residual(), masks(stem=FULL, one=none, two=FULL, shortcut=FULL, head=FULL), input_shape=(2,)
    )
    assert (connected.alive, connected.broken) == (True, None)
    assert connected.collapse == "layers with no weight left, though a path remains: one.weight"


def test_a_connected_network_has_no_broken_layer_and_no_warning() -> None:
    network = chain()
    diagnosis = diagnose(network, masks(**{"0": FULL, "1": FULL, "2": FULL}), input_shape=(2,))
    assert (diagnosis.alive, diagnosis.broken, diagnosis.collapse, diagnosis.collapsed) == (
        True,
        None,
        None,
        [],
    )
    assert (
        Connectivity(network, example_of(network, (2,), None)).first_disconnected(
            masks(**{"0": FULL, "1": FULL, "2": FULL})
        )
        is None
    )


# -- the whole network


def test_compression_is_the_number_of_weights_over_the_number_kept() -> None:
    diagnosis = diagnose(
        chain(),
        masks(**{"0": FULL, "1": [[1, 0], [0, 0]], "2": [[1, 0], [0, 0]]}),
        input_shape=(2,),
    )
    assert (diagnosis.kept, diagnosis.effective, diagnosis.total, diagnosis.compression) == (
        6,
        4,
        12,
        2,
    )


class Elementwise(nn.Module):
    """A module that applies a function of single entries."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


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
        *(
            (nn.Sequential(nn.Linear(2, 2), Elementwise(function)), (2,), {"1": "nonlinearity"})
            for function in (torch.sinh, torch.atan, torch.trunc, torch.special.log1p, torch.erfc)
        ),
    ],
)
def test_modules_that_are_not_homogeneous_are_named_with_the_reason(
    module: nn.Module, shape: tuple[int, ...], kinds: dict[str, str]
) -> None:
    ones = Masks(
        {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(module).items()}
    )
    assert diagnose(module, ones, input_shape=shape).inhomogeneous == kinds


@pytest.mark.parametrize(
    ("function", "homogeneous"),
    [
        (torch.relu, True),
        (torch.abs, True),
        (torch.neg, True),
        (torch.nan_to_num, True),
        (lambda x: 1 - x, True),  # a constant that is added is a bias
        (lambda x: x.clamp(min=0), True),
        (lambda x: x.clamp(max=0), True),
        (lambda x: nn.functional.threshold(x, 0, 0), True),
        (lambda x: x.clamp(min=-1), False),
        (lambda x: x.clamp(0, 1), False),
        (lambda x: nn.functional.threshold(x, 0, 1), False),
        (torch.square, False),
        (torch.sign, False),
        (torch.angle, False),
        (torch.sinh, False),
        (torch.atan, False),
        (torch.erfc, False),
        (torch.log10, False),
        (torch.trunc, False),
        (lambda x: x.remainder(2), False),
        (lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127), False),
    ],
)
def test_a_function_is_homogeneous_if_it_scales_as_its_argument_does(
    function: Callable[[Tensor], Tensor], homogeneous: bool
) -> None:
    diagnosis = diagnose(Applied(function), masks(layer=FULL), input_shape=(2,))
    assert diagnosis.inhomogeneous == ({} if homogeneous else {"Applied": "nonlinearity"})


class Applied(nn.Module):
    """A layer followed by a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(2, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


class Squeezed(nn.Module):
    """A layer whose output is multiplied by a gate, as in squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.squeeze = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x * self.squeeze(x)


def test_a_gate_is_named_by_the_module_that_multiplies_and_counts_as_dense() -> None:
    diagnosis = diagnose(Squeezed(), masks(layer=FULL, squeeze_0=FULL), input_shape=(2,))
    assert diagnosis.inhomogeneous == {"squeeze.1": "nonlinearity", "Squeezed": "gate"}
    assert diagnosis.notes == (
        "gates and attention count as dense connections: what weighs a signal is connected to all"
        " of it",
        "4 of 12 parameters take no part and stay dense: biases, gains and shifts (4)",
    )
    assert all(note in diagnosis.table() for note in diagnosis.notes)


# -- table, CSV and JSON


def test_the_table_ignores_the_width_and_colours_of_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    diagnosis = diagnose(
        chain(),
        masks(**{"0": FULL, "1": [[1, 0], [0, 0]], "2": [[1, 0], [0, 0]]}),
        input_shape=(2,),
    )
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = diagnosis.table().splitlines()
    assert diagnosis.table().isascii()
    assert "\x1b" not in diagnosis.table()
    assert (
        lines[0].split()
        == (
            "parameter shape weights kept effective density eff. density live in live out"
            " FLOPs sparse score flow"
        ).split()
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


def test_the_table_displays_nothing_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich displays HTML besides capturing text wherever it detects Jupyter."""
    displayed = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *arguments: displayed.append(arguments))
    diagnosis = diagnose(chain(1), masks(**{"0": FULL}), input_shape=(2,))
    assert "0.weight" in diagnosis.table()
    assert not displayed


def test_rich_prints_a_diagnosis_in_colour_on_a_terminal() -> None:
    diagnosis = diagnose(
        chain(), masks(**{"0": FULL, "1": [[0, 0], [0, 0]], "2": FULL}), input_shape=(2,)
    )
    console = Console(force_terminal=True, color_system="standard", width=200)
    with console.capture() as captured:
        console.print(diagnosis)
    assert "\x1b[31m" in captured.get()  # a layer without effective weights is red


def test_the_csv_has_a_line_for_each_layer_with_every_field(tmp_path: Path) -> None:
    diagnosis = diagnose(
        chain(),
        masks(**{"0": FULL, "1": [[1, 0], [0, 0]], "2": [[1, 0], [0, 0]]}),
        input_shape=(2,),
    )
    diagnosis.to_csv(tmp_path / "deep" / "table.csv")
    with open(tmp_path / "deep" / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["0.weight", "1.weight", "2.weight"]
    expected = """
        name shape total kept density effective effective_density units living_units inputs
        living_inputs flops sparse_flops score_mean score_variance score_sum flow
    """
    assert set(rows[0]) == set(expected.split())
    for row, layer in zip(rows, diagnosis.layers, strict=True):
        assert (int(row["kept"]), int(row["effective"]), int(row["flops"])) == (
            layer.kept,
            layer.effective,
            layer.flops,
        )
        assert float(row["score_sum"]) == layer.score_sum
    assert os.listdir(tmp_path / "deep") == ["table.csv"]  # no temporary file is left


def test_the_json_has_the_numbers_of_the_network_and_of_its_layers(tmp_path: Path) -> None:
    diagnosis = diagnose(
        Squeezed(), masks(layer=[[1, 0], [0, 0]], squeeze_0=FULL), input_shape=(2,)
    )
    diagnosis.to_json(tmp_path / "table.json")
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
        assert content[name] == getattr(diagnosis, name)
    assert content["conservation_error"] == diagnosis.conservation_error
    assert content["inhomogeneous"] == diagnosis.inhomogeneous
    assert content["layers"][0]["shape"] == [2, 2]
    assert content["layers"][0]["score_sum"] == diagnosis.layers[0].score_sum
    assert os.listdir(tmp_path) == ["table.json"]


def test_a_file_whose_writing_fails_does_not_replace_the_existing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diagnosis = diagnose(chain(), masks(**{"0": FULL, "1": FULL, "2": FULL}), input_shape=(2,))
    diagnosis.to_csv(tmp_path / "table.csv")
    before = (tmp_path / "table.csv").read_text()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        diagnosis.to_csv(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == before
    assert os.listdir(tmp_path) == ["table.csv"]


class Spectrum(nn.Module):
    """A network with an operation without a rule whose fallback has no finite relative error.

    The operation cannot be computed on the flow ("singular"), or the error is zero over zero
    ("zero"), or infinite ("infinite").
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
def test_a_fallback_whose_error_is_not_finite_is_named_without_a_number(kind: str) -> None:
    diagnosis = diagnose(
        Spectrum(kind), masks(layer=[[1] * 8] * 8, head=[[1] * 8] * 2), input_shape=(8,)
    )
    (note,) = (note for note in diagnosis.notes if note.startswith("operations without a rule"))
    assert "nan" not in note
    assert "inf" not in note
