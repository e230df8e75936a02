"""The machines on which a run was made: accuracies differ in the last digits from one kind to another."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from synflow_pl.durable import replacing
from synflow_pl.runs.folder import MACHINES

__all__ = ["machine", "note_machine"]


def machine() -> str:
    """What is worked on here, in a line and without its name: processor and cores, GPUs, Python and torch."""
    gpus = torch.cuda.device_count()
    gpu = [f"{gpus} x {torch.cuda.get_device_name()}"] if gpus else []
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    return ", ".join([f"{platform.machine()} of {os.cpu_count()} cores", *gpu, *versions])


def note_machine(run: Path) -> None:
    """Write into a run that this machine works on it; it may be one of several, since a run can go on anywhere."""
    path = run / MACHINES
    noted = path.read_text().splitlines() if path.is_file() else []
    if machine() not in noted:
        with replacing(path) as file:
            file.write("".join(f"{line}\n" for line in [*noted, machine()]).encode())
