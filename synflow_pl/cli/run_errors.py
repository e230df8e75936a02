"""Turn the expected errors of a subcommand into one sentence and an exit status."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer

from synflow_pl.cli import slurm
from synflow_pl.cli.errors import clarify, exit_with_error
from synflow_pl.diagnosis import DeadNetwork
from synflow_pl.io import explain, storage_error, write_error_message
from synflow_pl.training.distributed import Disagreement
from synflow_pl.training.signals import Stopped

__all__ = ["exit_on_invalid_options", "exit_when_stopped", "expected_error"]


@contextmanager
def exit_on_invalid_options() -> Iterator[None]:
    """Print an error that an option causes as one sentence, and exit.

    The exit status is 2, or 1 if a file cannot be read or written.
    """
    try:
        yield
    except (
        ValueError,
        TypeError,
        FileNotFoundError,
        ImportError,
        MisconfigurationException,
    ) as error:
        exit_with_error(clarify(str(error), []))
    except OSError as error:
        exit_with_error(explain(error), status=1)


def exit_when_stopped(stopped: Stopped, trainer: Trainer, *, resumable: bool) -> NoReturn:
    """Print how training can be resumed, and exit with the signal's exit status.

    Args:
        stopped: Exception that a signal raised.
        trainer: The trainer.
        resumable: Whether the command can resume what was stopped.
    """
    if trainer.is_global_zero:
        where = f"; {os.path.relpath(stopped.checkpoint)} is whole" if stopped.checkpoint else ""
        what = "resumes" if stopped.checkpoint else "starts again"
        if stopped.number == signal.SIGUSR1:
            # Printed first, since SLURM kills a job when it is requeued.
            print(
                f"\nSLURM's time is nearly up{where}. The job is queued again and then {what} "
                "by itself.",
                flush=True,
            )
            slurm.queue_again()
            raise SystemExit(0)
        again = f"; the same command with --ckpt_path last {what} there" if resumable else ""
        exit_with_error(f"{stopped}{where}{again}", status=128 + stopped.number)
    raise SystemExit(0)


def expected_error(error: Exception) -> str | None:
    """Return the message of an error of this package or of the storage; ``None`` for any other."""
    if isinstance(
        error,
        (
            DeadNetwork,
            Disagreement,
            ValueError,
            OSError,
            FloatingPointError,
            MisconfigurationException,
        ),
    ):
        cause: BaseException | None = error
        # A full disk also raises an error when the logger is closed, which hides the first one.
        while cause is not None and not _is_ours(cause):
            cause = cause.__context__
        if cause is not None:
            return explain(cause)
    failed = storage_error(error)
    return write_error_message(None, failed) if failed is not None else None


def _is_ours(error: BaseException) -> bool:
    """Return whether this package raised an error, or Lightning did about its options."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, MisconfigurationException) or Path(raised_in).is_relative_to(
        Path(__file__).parents[1]
    )
