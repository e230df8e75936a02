"""Stop training between two steps on Ctrl-C or a signal that asks the process to end."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.utilities import rank_zero_info

__all__ = ["SignalHandler", "Stopped"]


class Stopped(BaseException):
    """Exception that ends a training after a signal.

    Args:
        number: Number of the signal.
        checkpoint: Path of the checkpoint from which training can resume; ``None`` if it had not
            begun.
    """

    def __init__(self, number: int, checkpoint: str | None = None) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.checkpoint = checkpoint


class SignalHandler:
    """Record the first signal that asks the training to stop.

    The signals are SIGINT (Ctrl-C), SIGTERM and, in a SLURM job, SIGUSR1, which
    ``#SBATCH --signal=USR1@120`` sends before the time limit. :meth:`received` returns the signal,
    so that training can stop after a step; a second Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self._received = 0

    def listen(self, trainer: Trainer, *numbers: signal.Signals) -> None:
        """Handle signals from now on, until Lightning restores the earlier handlers after the fit.

        Lightning's own handler of SIGTERM would end training without a checkpoint. It also
        broadcasts, and on several ranks this collective call would interrupt each rank between
        different collective calls.

        Args:
            trainer: Trainer of the fit, which has installed Lightning's handlers.
            numbers: Signals to handle; by default SIGINT, SIGTERM and, in a SLURM job, SIGUSR1.
        """
        if trainer.received_sigterm:
            self._received = self._received or signal.SIGTERM
        if not numbers:
            numbers = (
                signal.SIGINT,
                signal.SIGTERM,
                *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else []),
            )
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                signal.signal(number, self._record)

    def _record(self, number: int, _: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._received = self._received or number
        rank_zero_info(
            f"\n{signal.Signals(number).name}: training stops after this batch, or after a"
            " validation that runs; Ctrl-C stops at once."
        )

    def received(self, trainer: Trainer) -> int:
        """Return the number of the signal that any rank received, or 0 if none did.

        This is a collective call: every rank has to make it.

        Args:
            trainer: Trainer of the fit.
        """
        if trainer.world_size == 1:
            return self._received
        number = torch.tensor(self._received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(number, reduce_op="max"))
