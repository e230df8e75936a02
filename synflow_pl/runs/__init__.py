"""Runs: the folder, the loggers that write into it, sweeps of many, and the report over them.

Lazy, since the report needs neither torch nor Lightning, and the loggers do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from synflow_pl.runs.run_folder import CONFIG, MACHINES, PRUNED, claim, run_of

if TYPE_CHECKING:
    from synflow_pl.runs.loggers import RunCSV, RunTensorBoard

__all__ = ["CONFIG", "MACHINES", "PRUNED", "RunCSV", "RunTensorBoard", "claim", "run_of"]


def __getattr__(name: str) -> Any:
    if name not in ("RunCSV", "RunTensorBoard"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.loggers"), name)
