"""Run folders, the loggers that write into them, sweeps of runs, and reports over runs.

The loggers are imported on first use: they need torch and Lightning, which reports do not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from synflow_pl.runs.run_folder import CONFIG, MACHINES, PRUNED, create_run_folder, find_run_folder

if TYPE_CHECKING:
    from synflow_pl.runs.loggers import RunCSV, RunTensorBoard

__all__ = [
    "CONFIG",
    "MACHINES",
    "PRUNED",
    "RunCSV",
    "RunTensorBoard",
    "create_run_folder",
    "find_run_folder",
]


def __getattr__(name: str) -> Any:
    if name not in ("RunCSV", "RunTensorBoard"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.loggers"), name)
