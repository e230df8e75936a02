"""Record the kind of machine that a run was made on.

Accuracies differ in the last digits between kinds of machines.
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
    """Return one line that describes this machine: processor, cores, GPUs, Python and torch.

    The host name is not part of it.
    """
    gpus = torch.cuda.device_count()
    gpu = [f"{gpus} x {torch.cuda.get_device_name()}"] if gpus else []
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    return ", ".join([f"{platform.machine()} of {os.cpu_count()} cores", *gpu, *versions])


def record_environment(run: Path) -> None:
    """Add the description of this machine to the file of machines in a run folder.

    The file lists several machines if the run was resumed on another one.

    Args:
        run: Folder of the run.
    """
    path = run / MACHINES
    lines = path.read_text().splitlines() if path.is_file() else []
    if environment() not in lines:
        with atomic_write(path) as file:
            file.write("".join(f"{line}\n" for line in [*lines, environment()]).encode())
