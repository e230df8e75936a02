"""SLURM: save at the end of a step when the job's time is nearly up, and requeue the job."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import NoReturn

from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning import Trainer

from synflow_pl.training.signals import Stopped

__all__ = ["listen", "queue_again", "restarted"]


def restarted() -> bool:
    """Return whether this job ran before and has been requeued."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def listen(trainer: Trainer) -> None:
    """Handle SLURM's signals in place of Lightning.

    Lightning would save in the middle of a step, and into a folder that other jobs read.

    Args:
        trainer: The trainer whose SLURM environment is changed.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False
    if "SLURM_JOB_ID" in os.environ:
        signal.signal(signal.SIGUSR1, _stop)


def _stop(number: int, _: object) -> NoReturn:
    """Stop at once: before training there is nothing to save."""
    raise Stopped(number)


def queue_again() -> None:
    """Requeue this job.

    Raises:
        ValueError: If SLURM refuses.
    """
    job = os.environ["SLURM_JOB_ID"]
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(
            f"SLURM does not queue job {job} again ({done.stderr.strip()}); submit it with "
            "--requeue"
        )
