"""Read the files of a run, and check that a finished run of synflow_pl wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synflow_pl.runs.progress import configuration, ended, progress
from synflow_pl.runs.run_folder import CONFIG

__all__ = [
    "Accuracies",
    "IntermediateLevel",
    "SkippedRun",
    "covers_test_set",
    "read_accuracies",
    "read_config",
    "read_json",
]


class SkippedRun(ValueError):
    """Raised for a folder that cannot be reported; the message gives the reason."""


class IntermediateLevel(SkippedRun):
    """Raised for a level of a multi-shot pruning before the last one, which is reported instead."""


@dataclass(frozen=True)
class Accuracies:
    """Test accuracies of one run, in [0, 1].

    An accuracy is ``None`` if it was not measured, or not on the whole test set.

    Attributes:
        final: Accuracy after the last epoch.
        at_best_validation: Accuracy at the first of the epochs with the best validation accuracy.
        best_on_test: Best accuracy of all epochs, chosen on the test set.
    """

    final: float | None
    at_best_validation: float | None
    best_on_test: float | None


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of ``config.yaml`` after checking that synflow_pl wrote it.

    Args:
        folder: Folder of the run.

    Raises:
        SkippedRun: If the file is missing, damaged, or of another program.
    """
    if not (folder / CONFIG).is_file():
        raise SkippedRun(
            f"there is no {CONFIG} in it: it was stopped before it began, or is not a run"
        )
    try:
        config: dict[str, Any] = configuration(folder)
    except ValueError as error:
        raise SkippedRun(str(error)) from error
    shaped = isinstance(config, dict) and all(
        isinstance(config.get(key), dict) for key in ("model", "data", "pruning")
    )
    if not (
        shaped
        and "network" in config["model"]
        and "class_path" in config["data"]
        and isinstance(config.get("seed_everything"), int)
    ):
        raise SkippedRun(
            f"it is not a run of synflow_pl: its {CONFIG} has no model.network, data, pruning and"
            " seed_everything"
        )
    for name, part in (
        ("model.network", config["model"]["network"]),
        ("pruning.pruner", config["pruning"].get("pruner") or {}),
    ):
        if part != {} and not (isinstance(part, dict) and isinstance(part.get("class_path"), str)):
            raise SkippedRun(f"it is broken: {name} names no class (class_path) in its {CONFIG}")
    return config


def read_json(path: Path, *keys: str) -> Any:
    """Return the content of a JSON file, or ``None`` if there is no file.

    Args:
        path: Path of the file.
        *keys: Keys that the content must have.

    Raises:
        SkippedRun: If the file is damaged or lacks a key.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise SkippedRun(f"its {path.name} cannot be read: {error}") from error
    if missing := [key for key in keys if not isinstance(content, dict) or key not in content]:
        raise SkippedRun(f"it is broken: there is no {missing[0]} in its {path.name}")
    return content


def read_accuracies(
    folder: Path, trainer: Mapping[str, Any], validated_on_test: bool
) -> Accuracies:
    """Return the test accuracies in ``metrics.csv``.

    Args:
        folder: Folder of the run.
        trainer: Options of the Trainer.
        validated_on_test: Whether the run was validated on the test set.

    Raises:
        SkippedRun: If the run is unfinished or not tested.
    """
    if not (folder / "metrics.csv").is_file():
        raise SkippedRun("it is unfinished: there is no metrics.csv in it")
    try:
        state = progress(folder)
    except ValueError as error:
        raise SkippedRun(str(error)) from error
    if not ended(trainer, state):
        trained = (
            f"after {state.epochs} epochs" if state.epochs else "before the end of its first epoch"
        )
        on = f"synflow_pl fit -c {folder / CONFIG} --ckpt_path {folder}"
        raise SkippedRun(f"it is unfinished: stopped {trained}; resume it with {on}")
    if state.final is None:
        raise SkippedRun(f"it is not tested yet: synflow_pl test --ckpt_path {folder}")
    if state.part or (not state.tests and not covers_test_set(trainer.get("limit_test_batches"))):
        return Accuracies(None, None, None)
    if validated_on_test:
        return Accuracies(state.final, None, max(state.validation.values(), default=None))
    best = max(sorted(state.validation), key=state.validation.__getitem__, default=None)
    test = state.test_each_epoch
    return Accuracies(
        state.final, test.get(best) if best is not None else None, max(test.values(), default=None)
    )


def covers_test_set(limit: Any) -> bool:
    """Return whether a test with a limit of batches is on the whole test set.

    Args:
        limit: Limit of batches: 1.0 is all batches, 1 is one batch.
    """
    return limit is None or (isinstance(limit, float) and limit == 1)
