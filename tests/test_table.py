"""The table of accuracies contains exactly the runs that agree with their recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.table import Entry, fill
from synflow_pl.cli.command import parse_fit
from synflow_pl.runs import MACHINES

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
        "2",
        "a laptop; a GPU",
        f"`{command}`",
    ]
    assert (
        filled["`mnist_fc`", "dense", "1"][-1]
        == "`synflow_pl fit -c mnist_fc -c pruners/dense --seed_everything 3`"
    )
    assert filled["`mnist_fc`", "synflow", "0.01"][:3] == ["", "", "not run"]


def test_accuracies_without_a_run_are_removed_and_listed_as_not_run(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    fill(*files, [tmp_path / "runs"])
    assert files[0].read_text() == TABLE.replace(" 12.34 |", " |")
    (head, _line, *filled) = rows(files[1].read_text())
    assert head == ["recipe", "pruner", "density", "accuracy", "seed", "machine", "command"]
    # The recipes of configs/sweeps/table.yaml that are in this README.
    assert [row[0] for row in filled] == ["`cifar10_vgg16`"] * 3 + ["`cifar100_vgg16`"] * 3
    assert {tuple(row[3:6]) for row in filled} == {("", "", "not run")}


@pytest.mark.parametrize(
    "options",
    [
        ("--model.optimizer.lr", "0.1"),
        ("--trainer.max_epochs", "3"),
        ("--trainer.limit_train_batches", "5"),
        ("--trainer.precision", "bf16-mixed"),
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
