"""Tests of what a report reads from a run: the test accuracy of each epoch and the diagnosis."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import QUIET

from synflow_pl.cli import subcommands
from synflow_pl.cli.main import run
from synflow_pl.cli.session import Session
from synflow_pl.data import Digits

SHORT = [
    "-c",
    "demo",
    "--model.network.width",
    "4",
    "--trainer.max_epochs",
    "2",
    "--trainer.limit_train_batches",
    "4",
    *QUIET,
]


def rows(folder: Path, column: str) -> list[float]:
    with open(folder / "metrics.csv", newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


def fitted(*more: str) -> Session:
    return run(["fit", *SHORT, *more])


def test_testing_after_each_epoch_leaves_the_training_bitwise_unchanged(
    folder: Path,
) -> None:
    plain = fitted("--run", "plain").model.network.state_dict()
    cli = fitted("--run", "tested", "--data.test_each_epoch", "true")
    tested = cli.model.network.state_dict()
    assert all(torch.equal(plain[name], tested[name]) for name in plain)
    subcommands.test(cli, model=cli.model, datamodule=cli.datamodule)
    runs = folder / "lightning_logs"
    each = rows(runs / "tested", "test_each_epoch/accuracy")
    assert len(each) == 2
    assert each[-1:] == rows(runs / "tested", "test/accuracy")
    assert rows(runs / "tested", "val/accuracy") == rows(runs / "plain", "val/accuracy")
    assert rows(runs / "plain", "test_each_epoch/accuracy") == []


def test_testing_after_each_epoch_requires_a_separate_validation_set() -> None:
    for options in ({"validate_on_test": True}, {"val_size": 0}):
        with pytest.raises(ValueError, match="test_each_epoch needs a validation set"):
            Digits(test_each_epoch=True, **options)  # type: ignore[arg-type]


def test_diagnosis_json_states_the_number_of_kept_weights(folder: Path) -> None:
    fitted("--run", "kept", "--pruning.rounds", "2", "--pruning.density", "0.1")
    diagnosis = json.loads((folder / "lightning_logs" / "kept" / "diagnosis.json").read_text())
    # With width 4, conv has 9 * 4 + 9 * 4 * 4 + 4 * 784 * 10 weights.
    assert (diagnosis["total"], diagnosis["kept"], diagnosis["alive"]) == (31_540, 3_154, True)
    assert sum(layer["kept"] for layer in diagnosis["layers"]) == diagnosis["kept"]
    assert 0 < diagnosis["sparse_flops"] < diagnosis["flops"]
