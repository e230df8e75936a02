"""Interruption: Ctrl-C, or a signal that asks a process to end, honoured between two steps of a
training.
"""

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
    """Training was stopped by a signal.

    Args:
        number: of the signal.
        checkpoint: where it can go on from; ``None`` if it had not begun.
    """

    def __init__(self, number: int, checkpoint: str | None = None) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.checkpoint = checkpoint


class SignalHandler:
    """Listens, while it trains, for Ctrl-C, SIGTERM, and in a SLURM job for SIGUSR1, which
    ``#SBATCH --signal=USR1@120`` has it send before time is up.

    The first signal is a wish that :meth:`wished` tells; a second Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self._wish = 0

    def listen(self, trainer: Trainer, *numbers: signal.Signals) -> None:
        """Handle signals from now on; Lightning restores the handlers that were there when the fit
        began.

        Lightning's own handler of SIGTERM would end training without a checkpoint. It also
        broadcasts, which on several ranks comes between any two collective calls of the code that
        it interrupts, on each rank between other two.

        Args:
            trainer: the trainer of the fit, with Lightning's handlers in place.
            numbers: signals to handle; by default SIGINT, SIGTERM and, in a SLURM job, SIGUSR1.
        """
        if trainer.received_sigterm:
            self._wish = self._wish or signal.SIGTERM
        if not numbers:
            numbers = (
                signal.SIGINT,
                signal.SIGTERM,
                *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else []),
            )
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._wish and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._wish = self._wish or number
        rank_zero_info(
            f"\n{signal.Signals(number).name}: training stops after this batch, or after a validation that runs; Ctrl-C stops at once."
        )

    def wished(self, trainer: Trainer) -> int:
        """The signal that came on any rank, 0 if none did; every rank has to ask."""
        if trainer.world_size == 1:
            return self._wish
        number = torch.tensor(self._wish, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(number, reduce_op="max"))
