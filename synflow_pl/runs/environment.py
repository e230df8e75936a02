"""The machines on which a run was made: accuracies differ in the last digits from one kind to
another.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from synflow_pl.io import atomic_write
from synflow_pl.runs.run_folder import MACHINES

__all__ = ["environment", "record_environment"]


def environment() -> str:
    """What is worked on here, in a line and without its name: processor and cores, GPUs, Python and
    torch.
    """
    gpus = torch.cuda.device_count()
    gpu = [f"{gpus} x {torch.cuda.get_device_name()}"] if gpus else []
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    return ", ".join([f"{platform.machine()} of {os.cpu_count()} cores", *gpu, *versions])


def record_environment(run: Path) -> None:
    """Write into a run that this machine works on it; it may be one of several, since a run can go
    on anywhere.
    """
    path = run / MACHINES
    noted = path.read_text().splitlines() if path.is_file() else []
    if environment() not in noted:
        with atomic_write(path) as file:
            file.write("".join(f"{line}\n" for line in [*noted, environment()]).encode())
