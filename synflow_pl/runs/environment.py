"""Record the kind of machine and the versions that a run was made with.

Accuracies differ in the last digits between kinds of machines.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from synflow_pl import __version__
from synflow_pl.io import atomic_write
from synflow_pl.runs.run_folder import MACHINES

__all__ = ["environment", "record_environment"]


def environment() -> str:
    """Return one line that describes this machine and the versions of the software.

    These are processor, cores, GPUs, Python, torch, Lightning and synflow_pl, with its commit if it
    runs from a git checkout (``-dirty`` if files of it were changed). The host name is not part of
    it.
    """
    gpus = torch.cuda.device_count()
    gpu = [f"{gpus} x {torch.cuda.get_device_name()}"] if gpus else []
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    versions += [
        f"Lightning {version('pytorch-lightning')}",
        f"synflow_pl {__version__}{_commit()}",
    ]
    return ", ".join([f"{platform.machine()} of {os.cpu_count()} cores", *gpu, *versions])


def _commit() -> str:
    """Return the commit of the checkout that this package is run from, in parentheses, or ""."""
    root = Path(__file__).parents[2]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return ""
    described = subprocess.run(
        [git, "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"],
        capture_output=True,
        text=True,
    )
    return f" ({described.stdout.strip()})" if described.returncode == 0 else ""


def record_environment(run: Path) -> None:
    """Add the description of this machine to the file of machines in a run folder.

    The file has several lines if the run was resumed on another machine or with other versions.

    Args:
        run: Folder of the run.
    """
    path = run / MACHINES
    lines = path.read_text().splitlines() if path.is_file() else []
    if environment() not in lines:
        with atomic_write(path) as file:
            file.write("".join(f"{line}\n" for line in [*lines, environment()]).encode())
