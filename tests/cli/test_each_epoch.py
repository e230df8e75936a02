"""What a report needs of a run: the test accuracy of each epoch, which changes nothing of the
training, and what was kept.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import QUIET

from synflow_pl.cli.main import CLI, run
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


def fitted(*more: str) -> CLI:
    return run(["fit", *SHORT, *more])


def test_the_test_set_is_met_after_each_epoch_and_the_training_is_the_same_to_the_last_bit(
    folder: Path,
) -> None:
    plain = fitted("--run", "plain").model.network.state_dict()
    cli = fitted("--run", "told", "--data.test_each_epoch", "true")
    told = cli.model.network.state_dict()
    assert all(torch.equal(plain[name], told[name]) for name in plain)
    cli.test(model=cli.model, datamodule=cli.datamodule)
    runs = folder / "lightning_logs"
    each = rows(runs / "told", "test_each_epoch/accuracy")
    assert len(each) == 2
    assert each[-1:] == rows(runs / "told", "test/accuracy")
    assert rows(runs / "told", "val/accuracy") == rows(runs / "plain", "val/accuracy")
    assert rows(runs / "plain", "test_each_epoch/accuracy") == []


def test_it_needs_a_validation_beside_it() -> None:
    for options in ({"validate_on_test": True}, {"val_size": 0}):
        with pytest.raises(ValueError, match="test_each_epoch needs a validation set"):
            Digits(test_each_epoch=True, **options)  # type: ignore[arg-type]


def test_a_run_says_what_was_kept(folder: Path) -> None:
    fitted("--run", "kept", "--pruning.rounds", "2", "--pruning.density", "0.1")
    told = json.loads((folder / "lightning_logs" / "kept" / "diagnosis.json").read_text())
    # conv at width 4: 9 * 4 + 9 * 4 * 4 + 4 * 784 * 10 weights.
    assert (told["total"], told["kept"], told["alive"]) == (31_540, 3_154, True)
    assert sum(layer["kept"] for layer in told["layers"]) == told["kept"]
    assert 0 < told["sparse_flops"] < told["flops"]
