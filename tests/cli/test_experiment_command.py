"""Tests of the command ``experiment``: its files, the data that it reads, and its errors."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUIET

from synflow_pl.cli.experiment import experiment, planned
from synflow_pl.cli.experiment_plan import Plan
from synflow_pl.networks import FC
from synflow_pl.pruners import FORCE

CPU = ["--trainer.accelerator", "cpu"]
FC_SMALL = ["-c", "mnist_fc", "--model.network.width", "20", *CPU]
# Numbers of weights in the six layers of fc with width 20 on 28x28 images.
SIZES = [784 * 20, 400, 400, 400, 400, 200]


def table(path: str) -> list[dict[str, Any]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def files(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


@pytest.mark.usefixtures("folder")
def test_layers_writes_a_row_for_each_pruner_and_layer_and_reads_no_data_for_noise(
    touched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    experiment(["layers", *FC_SMALL, "--pruners", "magnitude", "snip", "synflow", "--noise", "20"])
    assert touched == []
    folder = "lightning_logs/layers-mnist_fc-seed0"
    assert files(folder) == {"layers.csv", "layers.png", "layers.pdf", "command.txt"}
    rows = table(f"{folder}/layers.csv")
    assert [row["pruner"] for row in rows] == [
        name for name in ("magnitude", "snip", "synflow") for _ in SIZES
    ]
    assert [int(row["weights"]) for row in rows] == 3 * SIZES
    assert all(
        float(row["average"]) == pytest.approx(float(row["total"]) / int(row["weights"]))
        for row in rows
    )
    totals = [float(row["total"]) for row in rows if row["pruner"] == "synflow"]
    assert totals == pytest.approx([totals[0]] * 6, rel=1e-5)
    output = capsys.readouterr().out
    assert "0.0000" in next(line for line in output.splitlines() if line.startswith("synflow"))
    assert (
        Path(folder, "command.txt")
        .read_text()
        .startswith("synflow_pl experiment layers -c mnist_fc --model.network.width 20")
    )


@pytest.mark.usefixtures("folder", "generated")
def test_units_scores_on_data_if_a_pruner_needs_it() -> None:
    experiment(["units", *FC_SMALL, "--pruners", "grasp", "synflow", "--run", "mine"])
    rows = table("lightning_logs/mine/units.csv")
    assert len(rows) == 2 * 5 * 20
    flow = [(float(row["into"]), float(row["out"])) for row in rows if row["pruner"] == "synflow"]
    assert all(into == pytest.approx(out, rel=1e-4) for into, out in flow)


@pytest.mark.usefixtures("folder", "generated")
def test_scores_are_taken_in_the_mode_and_on_the_batches_of_the_overlay_unless_typed() -> None:
    command = ["schedule", *FC_SMALL, "--pruners", "force", "snip"]
    _, plan = planned(command)
    assert isinstance(plan, Plan)
    assert plan.scoring("force")["train_mode"] is True
    assert plan.scoring("snip")["train_mode"] is False
    batches = plan.batches([FORCE()], None)
    assert plan.batches_of_rounds("snip", batches, None) is batches
    assert plan.batches_of_rounds("force", batches, 20) is batches
    of_round = plan.batches_of_rounds("force", batches, None)
    assert callable(of_round)
    assert torch.equal(of_round(0)[0][0], batches[0][0])
    assert not torch.equal(of_round(1)[0][0], batches[0][0])
    _, typed = planned([*command, "--pruning.train_mode", "false"])
    assert isinstance(typed, Plan)
    assert typed.scoring("force")["train_mode"] is False


@pytest.mark.usefixtures("folder")
def test_schedule_writes_a_row_for_each_combination_of_its_options(touched: list[str]) -> None:
    cases = ["--rounds", "1", "5", "--exponents", "1", "2", "--schedules", "linear", "exponential"]
    experiment(["schedule", *FC_SMALL, *cases])
    assert touched == []
    rows = table("lightning_logs/schedule-mnist_fc-seed0/schedule.csv")
    ratios = {
        (row["schedule"], float(row["exponent"]), int(row["rounds"])): float(row["ratio"])
        for row in rows
    }
    assert len(rows) == len(ratios) == 8
    # With one round, all schedules are the same.
    assert ratios["linear", 2, 1] == ratios["exponential", 2, 1]
    assert ratios["exponential", 2, 5] < ratios["linear", 2, 5] < ratios["linear", 2, 1]


@pytest.mark.usefixtures("folder")
def test_schedule_has_one_row_for_each_compression_of_automatic_rounds() -> None:
    cases = ["--rounds", "1", "--exponents", "1", "2"]
    experiment(["schedule", *FC_SMALL, *cases, "--pruners", "synflow", "magnitude"])
    rows = table("lightning_logs/schedule-mnist_fc-seed0/schedule.csv")
    automatic = [row for row in rows if row["schedule"] == "auto"]
    assert len(rows) == 2 * 2 * 2 + 2
    assert [row["pruner"] for row in automatic] == ["synflow", "synflow"]
    assert 1 < int(automatic[0]["rounds"]) < int(automatic[1]["rounds"])
    assert all(0.1 < float(row["ratio"]) <= 0.5 for row in automatic)


@pytest.mark.usefixtures("folder", "generated")
def test_magnitude_trains_dense_and_records_the_weights_of_each_epoch() -> None:
    experiment(["magnitude", *FC_SMALL, *QUIET, "--trainer.max_epochs", "2"])
    folder = "lightning_logs/magnitude-mnist_fc-seed0"
    assert files(folder) >= {
        "magnitude.csv",
        "magnitude.png",
        "magnitude.pdf",
        "config.yaml",
        "checkpoints",
        "command.txt",
    }
    assert not Path(folder, "masks.safetensors").exists()
    rows = table(f"{folder}/magnitude.csv")
    assert [int(row["epoch"]) for row in rows] == [epoch for epoch in (0, 1, 2) for _ in SIZES]
    torch.manual_seed(0)
    drawn = FC((1, 28, 28), width=20)
    squares = [
        float(parameter.square().mean())
        for name, parameter in drawn.named_parameters()
        if name.endswith("weight")
    ]
    # Both networks are drawn from the same distributions.
    assert [float(row["average"]) for row in rows[:6]] == pytest.approx(squares, rel=0.2)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (
            ["unit"],
            2,
            "there is no experiment 'unit'; there are units, layers, magnitude, schedule",
        ),
        (["layers", *FC_SMALL, "--pruners", "synflo"], 2, "no recipe 'pruners/synflo'"),
        (
            ["layers", *FC_SMALL, "--pruners", "dense"],
            2,
            "'dense' prunes nothing, so it has no scores",
        ),
        (["layers", *FC_SMALL, "--noise", "0"], 2, "noise: 0 must be a number of images"),
        (["schedule", *FC_SMALL, "--rounds", "0"], 2, "at least 1 each"),
        (["schedule", *FC_SMALL, "--exponents", "-1"], 2, "exponents [-1.0] positive"),
        (
            ["schedule", *FC_SMALL, "--schedules", "auto", "--pruners", "snip"],
            2,
            "those of SNIP are not",
        ),
        (
            ["schedule", *FC_SMALL, "--noise", "4", "--pruners", "grasp", "--rounds", "1"],
            1,
            "GraSP gives negative scores",
        ),
        (["layers", *FC_SMALL, "--modl.network", "FC"], 2, "there is no option modl.network"),
        (
            ["layers", "--data", "ImageNet", "--model.network", "VGG", *CPU, "--pruners", "snip"],
            1,
            "there is no folder",
        ),
    ],
)
def test_a_mistake_is_reported_in_one_sentence_and_leaves_no_folder(
    args: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        experiment(args)
    assert raised.value.code == status
    error = next(
        line for line in capsys.readouterr().err.splitlines() if "synflow_pl: error:" in line
    )
    assert message in error
    assert not Path("lightning_logs").exists()


def test_help_names_the_experiments_and_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    experiment(["--help"])
    assert "units,layers,magnitude,schedule" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        experiment(["schedule", "--help"])
    output = capsys.readouterr().out
    assert all(
        option in output
        for option in ("--schedules", "--rounds", "--exponents", "--pruners", "--noise")
    )
