"""Every command takes any LightningDataModule, whatever it says about its images."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import QUIET

from synflow_pl.__main__ import main
from synflow_pl.masks import Masks

MODULE = '''
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset


class Plain(LightningDataModule):
    """Images 1x12x12 of 4 classes; it says nothing about them."""

    def __init__(self, batch_size: int = 16, values: float = 1.0):
        super().__init__()
        self.batch_size, self.values = batch_size, values

    def setup(self, stage):
        generator = torch.Generator().manual_seed(0)
        images = self.values * torch.randn(96, 1, 12, 12, generator=generator)
        self.samples = TensorDataset(images, torch.arange(96) % 4)

    def train_dataloader(self):
        return DataLoader(self.samples, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.samples, batch_size=self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader


class Known(Plain):
    """It says everything, in its constructor."""

    def __init__(self):
        super().__init__()
        self.input_shape, self.num_classes = (1, 12, 12), 4


class Own(Known):
    """It chooses the images that pruning scores on."""

    def pruning_batches(self, draw=0):
        self.setup("fit")
        return [self.samples[20 * draw : 20 * draw + 20]]


class Broken(Plain):
    def setup(self, stage):
        raise OSError("the disk is gone")
'''
SMALL = ["--model.network.width", "4", "--trainer.accelerator", "cpu", *QUIET]
FOUR = ["--model.num_classes", "4"]


@pytest.fixture(autouse=True)
def project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (folder / "mine.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", ".")])
    yield folder
    sys.modules.pop("mine", None)


def command(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """Run a command as the console script does, and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["synflow_pl", *args])
    try:
        main()
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def test_every_command_takes_a_plain_data_module(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["-c", "demo", "--data", "mine.Plain", *FOUR, *SMALL]
    run = ["--ckpt_path", "lightning_logs/mine", "--trainer.accelerator", "cpu", *QUIET]
    fit = ["fit", *data, "-c", "pruners/snip", "--run", "mine", "--trainer.max_epochs", "1"]
    assert command(monkeypatch, *fit) == 0
    config = yaml.safe_load((project / "lightning_logs" / "mine" / "config.yaml").read_text())
    arguments = config["model"]["network"]["init_args"]
    assert arguments["input_shape"] == [1, 12, 12]
    assert (arguments["num_classes"], config["model"]["num_classes"]) == (4, 4)
    for subcommand in ("validate", "test", "predict"):
        assert command(monkeypatch, subcommand, *run) == 0, subcommand
    assert (project / "lightning_logs" / "mine" / "predictions.csv").read_text().count("\n") == 97
    assert command(monkeypatch, "export", "--ckpt_path", "lightning_logs/mine") == 0
    card = project / "lightning_logs" / "mine" / "export" / "model.md"
    assert "float32 (N, 1, 12, 12)" in card.read_text()
    assert command(monkeypatch, "compact", "--ckpt_path", "lightning_logs/mine") == 0
    resumed = [*fit[:-1], "2", "--ckpt_path", "last"]
    assert command(monkeypatch, *resumed) == 0
    assert command(monkeypatch, "experiment", "units", *data, "--pruners", "snip", "synflow") == 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("pruner", ["synflow", "snip", "force"])
def test_prune_reads_training_batches_where_the_data_module_gives_none(
    project: Path, monkeypatch: pytest.MonkeyPatch, pruner: str
) -> None:
    options = ["-c", "demo", "-c", f"pruners/{pruner}", *FOUR, *SMALL, "--pruning.rounds", "3"]
    for kind in ("Plain", "Own"):
        arguments = ["prune", *options, "--data", f"mine.{kind}", "--run", kind]
        assert command(monkeypatch, *arguments) == 0
    masks = [
        Masks.load(project / "lightning_logs" / kind / "masks.safetensors")
        for kind in ("Plain", "Own")
    ]
    assert masks[0].kept == masks[1].kept
    same = all(bool((masks[0][name] == masks[1][name]).all()) for name in masks[0])
    assert same == (pruner == "synflow")  # without data there is nothing that differs


def test_fit_and_prune_choose_the_same_masks_from_plain_data(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["-c", "demo", "-c", "pruners/snip", *FOUR, *SMALL, "--data", "mine.Plain"]
    assert command(monkeypatch, "prune", *options, "--run", "pruned") == 0
    limits = ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "0"]
    assert command(monkeypatch, "fit", *options, "--run", "fitted", *limits) == 0
    kept = [
        json.loads((project / "lightning_logs" / name / "diagnosis.json").read_text())
        for name in ("pruned", "fitted")
    ]
    assert [layer["kept"] for layer in kept[0]["layers"]] == [
        layer["kept"] for layer in kept[1]["layers"]
    ]


def test_attributes_that_the_constructor_sets_are_read(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(monkeypatch, "prune", "-c", "demo", "--data", "mine.Known", *SMALL) == 0
    (config,) = project.glob("lightning_logs/*/config.yaml")
    model = yaml.safe_load(config.read_text())["model"]
    assert model["num_classes"] == model["network"]["init_args"]["num_classes"] == 4
    assert model["network"]["init_args"]["input_shape"] == [1, 12, 12]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--data", "mine.Plain"],
            "model.num_classes: mine.Plain has no attribute num_classes; give the number of its",
        ),
        (
            ["--data", "mine.Broken", *FOUR],
            "data: mine.Broken has no attribute input_shape, and its first training batch cannot be"
            " read (OSError: the disk is gone)",
        ),
    ],
)
@pytest.mark.parametrize("subcommand", ["fit", "prune"])
def test_what_cannot_be_known_is_asked_for_before_anything_is_written(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    subcommand: str,
    options: list[str],
    message: str,
) -> None:
    assert command(monkeypatch, subcommand, "-c", "demo", *options, *SMALL) == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith("synflow_pl: error: ")]
    assert message in line
    assert not (project / "lightning_logs").exists()


def test_recorded_classes_count_as_given(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["-c", "demo", "--data", "mine.Plain", *FOUR, *SMALL, "--trainer.max_epochs", "1"]
    assert command(monkeypatch, "fit", *options, "--run", "first") == 0
    again = ["fit", "-c", "lightning_logs/first/config.yaml", "--run", "second", "--data.values"]
    assert command(monkeypatch, *again, "2.0") == 0
    config = yaml.safe_load((project / "lightning_logs" / "second" / "config.yaml").read_text())
    assert config["data"]["init_args"]["values"] == 2.0
    assert config["model"]["num_classes"] == 4
