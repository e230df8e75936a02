"""Tests that every subcommand imports a user's classes from the working directory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from synflow_pl.__main__ import main

MINE = """
from pytorch_lightning import Callback
from torch import nn

from synflow_pl.data import Digits
from synflow_pl.pruners import Magnitude


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))


class Say(Callback):
    pass


class MyData(Digits):
    pass


class MyPruner(Magnitude):
    pass
"""
RECIPE = """
model: {network: {class_path: mine.Net}}
data: {class_path: mine.MyData}
pruning: {pruner: {class_path: mine.MyPruner}, density: 0.3}
trainer:
  {max_epochs: 1, limit_train_batches: 2, limit_val_batches: 1, limit_test_batches: 1,
   accelerator: cpu, enable_progress_bar: false, enable_model_summary: false,
   callbacks: [{class_path: mine.Say}]}
"""


@pytest.fixture
def project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a working directory with a module of classes, and a recipe in a subfolder.

    As for the console script, the working directory is not in ``sys.path``.
    """
    (folder / "mine.py").write_text(MINE)
    (folder / "recipes").mkdir()
    (folder / "recipes" / "mine.yaml").write_text(RECIPE)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", ".")])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield folder
    sys.modules.pop("mine", None)


def command(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    """Run a command as the console script does, before the user's module has been imported."""
    sys.modules.pop("mine", None)
    monkeypatch.setattr(sys, "argv", ["synflow_pl", *args])
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(Path.cwd())])
    status = 0
    try:
        main()
    except SystemExit as left:
        status = left.code or 0
    assert status == 0


def test_every_subcommand_imports_a_user_s_classes_of_a_recipe_in_another_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = ["-c", "recipes/mine.yaml"], "lightning_logs/a"
    command(monkeypatch, "fit", *recipe, "--run", "a")
    for evaluation in ("test", "validate", "predict"):
        command(monkeypatch, evaluation, "--ckpt_path", run)
    command(monkeypatch, "compact", "--ckpt_path", run)
    command(monkeypatch, "export", "--ckpt_path", run, "--format", "safetensors")
    command(monkeypatch, "prune", *recipe, "--run", "pruned")
    command(monkeypatch, "prune", *recipe, "--compare", "magnitude", "random", "--run", "both")
    command(
        monkeypatch, "experiment", "layers", *recipe, "--pruners", "magnitude", "--run", "layers"
    )
    command(
        monkeypatch,
        "sweep",
        "--recipes",
        '["recipes/mine.yaml"]',
        "--pruners",
        '["snip"]',
        "--densities",
        "[0.5]",
        "--dry_run",
    )
    for name in (
        "a/export/model.safetensors",
        "a/predictions.csv",
        "pruned/diagnosis.json",
        "both/comparison.csv",
        "layers/layers.csv",
    ):
        assert Path("lightning_logs", name).is_file(), name


@pytest.mark.slow
def test_multishot_sweep_and_report_import_a_user_s_classes(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ["-c", "recipes/mine.yaml"]
    command(monkeypatch, "multishot", "--levels", "1", *recipe, "--run", "shots")
    assert Path("lightning_logs/shots-level1of1/level.json").is_file()
    sweep = [
        "--recipes",
        '["recipes/mine.yaml"]',
        "--pruners",
        '["magnitude"]',
        "--densities",
        "[0.5]",
        "--folder",
        "sweep",
    ]
    command(monkeypatch, "sweep", *sweep)
    command(monkeypatch, "report", "sweep")
    assert "magnitude" in Path("report/table.md").read_text()


def test_print_config_of_the_trainer_s_subcommands_contains_a_user_s_class(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("fit", "validate", "test", "predict"):
        command(monkeypatch, name, "-c", "recipes/mine.yaml", "--print_config")
        assert "mine.Net" in capsys.readouterr().out
