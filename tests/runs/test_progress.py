"""Progress of a run: whether its training has ended, from its configuration and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synflow_pl.runs.progress import Progress, ended, progress

HALF = Progress(epochs=3, steps=30)


@pytest.mark.parametrize(
    ("trainer", "there"),
    [
        ({"max_epochs": 3, "max_steps": -1}, True),
        ({"max_epochs": 4, "max_steps": -1}, False),
        ({"max_epochs": 4, "max_steps": 30}, True),
        ({"max_epochs": None, "max_steps": 31}, False),
        ({"max_epochs": -1, "max_steps": 31}, False),
        (
            {"max_epochs": 4, "callbacks": [{"class_path": "synflow_pl.training.RewindPoint"}]},
            False,
        ),
        (
            {
                "max_epochs": 4,
                "callbacks": {"class_path": "pytorch_lightning.callbacks.EMAWeightAveraging"},
            },
            False,
        ),
    ],
)
def test_a_training_has_ended_when_it_has_its_epochs_or_its_steps(
    trainer: dict[str, Any], there: bool
) -> None:
    assert ended(trainer, HALF) == there


@pytest.mark.parametrize(
    "trainer",
    [
        {"max_epochs": 4, "max_time": "00:00:10:00"},
        {
            "max_epochs": 4,
            "callbacks": [{"class_path": "pytorch_lightning.callbacks.EarlyStopping"}],
        },
        {"max_epochs": 4, "callbacks": [{"class_path": "theirs.Stopper"}]},
        {"max_epochs": -1, "max_steps": -1},
    ],
)
def test_a_training_that_may_have_ended_early_counts_as_ended(trainer: dict[str, Any]) -> None:
    assert ended(trainer, HALF)


@pytest.mark.parametrize(
    "trainer", [{"max_epochs": 0}, {"max_epochs": 4, "limit_train_batches": 0}]
)
def test_a_training_without_any_steps_has_ended_at_once(trainer: dict[str, Any]) -> None:
    assert ended(trainer, Progress())


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_incomplete_last_line_is_ignored(end: str, tmp_path: Path) -> None:
    text = end.join(["epoch,step,train/loss,test/accuracy", "2,29,0.1,", "0,0,,0.7531", ""])
    for cut, final in ((0, 0.7531), (len(end), None), (len(end) + 2, None)):
        (tmp_path / "metrics.csv").write_bytes(text[: len(text) - cut].encode())
        assert progress(tmp_path) == Progress(epochs=3, steps=30, final=final)
