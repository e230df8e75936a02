"""The table of accuracies contains exactly the runs that agree with their recipe."""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import evidence, table
from benchmarks.evidence import store
from benchmarks.table import Entry, fill
from synflow_pl import Masks
from synflow_pl.cli.command import parse_fit
from synflow_pl.runs import MACHINES
from synflow_pl.runs.training_record import Training, write_record

TABLE = """Before.

| recipe | lr | test accuracy |
| --- | --- | --- |
| `mnist_fc` | 0.05 | 12.34 |
| `{cifar10,cifar100}_vgg16` | 0.1 | |

After.
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "README.md").write_text(TABLE)
    return tmp_path / "README.md", tmp_path / "accuracies.md"


def a_run(
    root: Path,
    pruner: str,
    density: float,
    seed: int,
    accuracy: float,
    *options: str,
    recipe: str = "mnist_fc",
) -> Path:
    """Write the folder of a run as ``fit`` and ``test`` leave it."""
    folder = root / f"{recipe}-{pruner}-{density}-{seed}{len(options)}"
    folder.mkdir(parents=True)
    amount = (
        []
        if pruner == "dense"
        else ["--pruning.density", str(density), "--pruning.on_collapse", "warn"]
    )
    plan = parse_fit(
        ["-c", recipe, "-c", f"pruners/{pruner}", *amount, "--seed_everything", str(seed), *options]
    )
    (folder / "config.yaml").write_text(plan.config_text)
    (folder / "metrics.csv").write_text(
        "epoch,step,train/loss,test/accuracy\n"
        f"{plan.options.trainer.max_epochs - 1},9,0.5,\n"
        f"0,0,,{accuracy}\n"
    )
    (folder / MACHINES).write_text("a laptop\na GPU\n")
    write_record(folder, Training(True, 2, 9, 5400.0, 9000.0))
    if pruner != "dense":
        diagnosis = {
            "density": density,
            "effective_density": density,
            "flops": 2,
            "sparse_flops": 1,
            "alive": True,
            "layers": [],
        }
        (folder / "diagnosis.json").write_text(json.dumps(diagnosis))
    return folder


def rows(text: str) -> list[list[str]]:
    return [
        [entry.strip() for entry in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]


def test_a_cell_has_three_accuracies_each_with_seed_machines_and_command(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    a_run(tmp_path / "runs", "dense", 1.0, 3, 0.98)
    a_run(tmp_path / "runs", "synflow", 0.1, 3, 0.95)
    a_run(tmp_path / "runs", "synflow", 0.1, 2, 0.94567)
    fill(*files, [tmp_path / "runs"])
    assert files[0].read_text() == TABLE.replace("12.34", "98.00 / 94.57 / ")
    filled = {(row[0], row[1], row[2]): row[3:] for row in rows(files[1].read_text())}
    command = (
        "synflow_pl fit -c mnist_fc -c pruners/synflow --pruning.density 0.1 --seed_everything 2"
    )
    assert filled["`mnist_fc`", "synflow", "0.1"] == [
        "94.57",
        "",
        "",
        "2",
        "1.50",
        "2.50",
        "a laptop; a GPU",
        f"`{command}`",
    ]
    assert (
        filled["`mnist_fc`", "dense", "1"][-1]
        == "`synflow_pl fit -c mnist_fc -c pruners/dense --seed_everything 3`"
    )
    assert filled["`mnist_fc`", "synflow", "0.01"][:-1] == ["", "", "", "", "", "", "not run"]


def test_an_accuracy_stands_beside_the_published_one_of_its_network_pruner_and_density(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    for pruner, density in (
        ("dense", 1.0),
        ("synflow", 0.1),
        ("synflow", 0.001),
        ("grasp", 0.001),
        ("grasp_inverted", 0.001),
        ("snip", 0.05),
    ):
        a_run(tmp_path / "runs", pruner, density, 0, 0.5, recipe="cifar10_vgg16")
    fill(*files, [tmp_path / "runs"])
    found = {tuple(row[1:3]): row[5] for row in rows(files[1].read_text())[2:] if row[3]}
    # Values of published.csv; 0.05 is between two published densities.
    assert found == {
        ("dense", "1"): "93.46 ± 0.14",
        ("synflow", "0.1"): "93.26 ± 0.12",
        ("synflow", "0.001"): "80.39 ± 0.09",
        ("grasp", "0.001"): "",
        ("grasp_inverted", "0.001"): "70.93 ± 1.84",
        ("snip", "0.05"): "",
    }


def test_accuracies_without_a_run_are_removed_and_listed_as_not_run(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    fill(*files, [tmp_path / "runs"])
    assert files[0].read_text() == TABLE.replace(" 12.34 |", " |")
    (head, _line, *filled) = rows(files[1].read_text())
    assert (head[0], head[3], head[-1]) == ("recipe", "accuracy", "command")
    # The recipes of configs/sweeps/table.yaml that are in this README.
    assert [row[0] for row in filled] == ["`cifar10_vgg16`"] * 3 + ["`cifar100_vgg16`"] * 3
    assert {tuple(row[3:-1]) for row in filled} == {("", "", "", "", "", "", "not run")}


@pytest.mark.parametrize(
    "options",
    [
        ("--model.optimizer.lr", "0.1"),
        ("--trainer.max_epochs", "3"),
        ("--trainer.limit_train_batches", "5"),
        ("--data.batch_size", "64"),
        ("--data.validate_on_test", "true"),
        ("--pruning.rounds", "3"),
        ("--pruning.scope", "local"),
        ("--model.network.width", "50"),
    ],
)
def test_a_run_that_differs_from_the_recipe_in_an_option_is_not_used(
    options: tuple[str, str], files: tuple[Path, Path], tmp_path: Path
) -> None:
    a_run(tmp_path / "runs", "synflow", 0.1, 0, 0.95, *options)
    fill(*files, [tmp_path / "runs"])
    assert "95.00" not in files[0].read_text() + files[1].read_text()


def test_a_run_that_differs_only_in_options_without_effect_is_used(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    a_run(
        tmp_path / "runs",
        "synflow",
        0.1,
        0,
        0.95,
        "--trainer.enable_progress_bar",
        "false",
        "--data.test_each_epoch",
        "true",
    )
    fill(*files, [tmp_path / "runs"])
    assert " / 95.00 / |" in files[0].read_text().replace("  ", " ")


HARDWARE = ["--trainer.precision", "bf16-mixed", "--model.channels_last", "true"]
HARDWARE += ["--pruning.compact", "true"]


def test_options_of_the_hardware_are_in_the_command_and_make_no_other_cell(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    a_run(tmp_path / "runs", "synflow", 0.1, 0, 0.95, *HARDWARE)
    fill(*files, [tmp_path / "runs"])
    assert " / 95.00 / |" in files[0].read_text().replace("  ", " ")
    (row,) = [row for row in rows(files[1].read_text()) if "95.00" in row]
    command = row[-1].strip("`").split()
    assert command[-6:] == HARDWARE
    plan = parse_fit(command[2:])
    assert plan.options.trainer.precision == "bf16-mixed"


def test_runs_of_other_pruners_and_densities_have_rows_after_those_of_the_table(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    a_run(tmp_path / "runs", "dense", 1.0, 0, 0.98)
    a_run(tmp_path / "runs", "snip", 0.1, 0, 0.93)
    a_run(tmp_path / "runs", "snip", 0.1, 1, 0.94)
    a_run(tmp_path / "runs", "synflow", 0.001, 0, 0.5)
    a_run(tmp_path / "runs", "grasp", 0.1, 0, 0.9, "--trainer.max_epochs", "3")
    fill(*files, [tmp_path / "runs"])
    further = [tuple(row[:4]) for row in rows(files[1].read_text())[-2:]]
    assert further == [
        ("`mnist_fc`", "snip", "0.1", "93.00"),
        ("`mnist_fc`", "synflow", "0.001", "50.00"),
    ]
    assert "98.00 /  / " in files[0].read_text()


def test_a_recipe_with_no_cell_in_the_table_still_has_rows_for_other_densities(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    a_run(tmp_path / "runs", "synflow", 0.5, 0, 0.9)
    fill(*files, [tmp_path / "runs"])
    assert rows(files[1].read_text())[-1][:4] == ["`mnist_fc`", "synflow", "0.5", "90.00"]


def test_kept_runs_give_the_same_tables_and_name_no_folder_of_the_machine(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--data.data_dir", str(tmp_path / "images"), *HARDWARE]
    run = a_run(tmp_path / "runs", "synflow", 0.1, 0, 0.95, *options)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["ckpt_path"] = str(run / "checkpoints" / "last.ckpt")  # as in a run that was resumed
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    Masks({"layer": torch.arange(8) < 3}).save(run / "masks.safetensors")
    (run / "checkpoints").mkdir()
    fill(*files, [tmp_path / "runs"])
    tables = [path.read_text() for path in files]
    monkeypatch.setattr(table, "README", files[0])
    monkeypatch.setattr(table, "DETAILS", files[1])
    monkeypatch.setattr(table, "EVIDENCE", tmp_path / "evidence")
    monkeypatch.setattr(sys, "argv", ["table", str(tmp_path / "runs"), "--keep"])
    table.main()
    assert [path.read_text() for path in files] == tables
    kept = tmp_path / "evidence" / run.name
    assert str(tmp_path) not in (kept / "config.yaml").read_text()
    assert not (kept / "checkpoints").exists()
    masks = lzma.decompress((kept / "masks.safetensors.xz").read_bytes())
    assert masks == (run / "masks.safetensors").read_bytes()
    fill(*files, [tmp_path / "evidence"])
    assert [path.read_text() for path in files] == tables
    store(kept, tmp_path / "evidence")  # a run that is stored already stays as it is
    assert (kept / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()


def test_a_command_tests_each_epoch_if_the_run_did(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    run = a_run(tmp_path / "runs", "snip", 0.1, 0, 0.93)
    fill(*files, [tmp_path / "runs"])
    without = rows(files[1].read_text())[-1][-1]
    (run / "metrics.csv").write_text(
        "epoch,step,train/loss,val/accuracy,test_each_epoch/accuracy,test/accuracy\n"
        "0,5,0.5,0.9,0.92,\n19,9,0.5,0.91,0.93,\n0,0,,,,0.93\n"
    )
    fill(*files, [tmp_path / "runs"])
    assert rows(files[1].read_text())[-1][-1] == without[:-1] + " --data.test_each_epoch true`"


def test_finished_runs_are_stored_without_large_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, stored = tmp_path / "runs", tmp_path / "stored"
    small, large, unfinished = (a_run(runs, "synflow", 0.1, seed, 0.95) for seed in range(3))
    Masks({"layer": torch.arange(8) < 3}).save(small / "masks.safetensors")
    random = torch.rand(2_000_000, generator=torch.Generator().manual_seed(0)) < 0.5
    Masks({"layer": random}).save(large / "masks.safetensors")
    write_record(unfinished, Training(False))
    monkeypatch.setattr(sys, "argv", ["evidence", str(runs), "--into", str(stored)])
    evidence.main()
    assert "2 of 3 runs stored" in capsys.readouterr().out
    assert sorted(path.name for path in stored.iterdir()) == sorted([small.name, large.name])
    assert (stored / small.name / "masks.safetensors.xz").is_file()
    assert not (stored / large.name / "masks.safetensors.xz").exists()
    assert (stored / large.name / "metrics.csv").is_file()


def test_a_command_of_the_table_parses_to_the_options_of_its_row() -> None:
    plan = parse_fit(list(Entry("cifar10_vgg16", "synflow", 0.01, None).options))
    assert (
        plan.options.pruning.density,
        plan.options.seed_everything,
        plan.options.trainer.max_epochs,
    ) == (0.01, 0, 160)


def test_a_damaged_run_is_reported(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (a_run(tmp_path / "runs", "dense", 1.0, 0, 0.9) / "metrics.csv").write_text(
        "epoch,test/accuracy\n0,high\n"
    )
    fill(*files, [tmp_path / "runs"])
    assert "its metrics.csv cannot be read" in capsys.readouterr().out
