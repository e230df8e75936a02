"""The options of a run as one flat mapping, and those that its test accuracy depends on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synflow_pl.runs.run_files import covers_test_set

__all__ = ["NOT_OF_DATA", "changed_test_options", "flatten"]

NOT_OF_DATA = {"data_dir", "pipeline", "num_workers", "predict_dir", "test_each_epoch"}
"""Options of the data that only choose folders or what is logged."""
# Options of the data that do not affect a test accuracy.
_NOT_OF_TEST = NOT_OF_DATA | {"batch_size", "val_size", "augment", "validate_on_test"}


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options by their full names: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``.

    Args:
        nested: Options, nested by section.
        prefix: Text that is put before each name.
    """
    options: dict[str, Any] = {}
    for key, value in nested.items():
        options |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return options


def changed_test_options(run: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    """Return the options for which a test accuracy is not that of the run, as ``name=value``.

    These are options of the network and the data that differ, and a limit to a part of the test
    set.

    Args:
        run: Configuration of the run.
        test: Configuration of the test.

    Returns:
        The options, separated by commas; empty if there are none.
    """
    was, now = ({"network": x["model"]["network"], "data": x["data"]} for x in (run, test))
    before, after = flatten(was), flatten(now)
    names = [
        name
        for name in sorted(before.keys() | after.keys())
        if name.rpartition(".")[2] not in _NOT_OF_TEST
    ]
    different = [
        f"{name}={after.get(name)}" for name in names if before.get(name) != after.get(name)
    ]
    limit = (test.get("trainer") or {}).get("limit_test_batches")
    return ", ".join(
        different + ([] if covers_test_set(limit) else [f"trainer.limit_test_batches={limit}"])
    )
