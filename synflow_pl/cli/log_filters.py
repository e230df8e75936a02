"""Silence messages of Lightning and of TensorBoard that say nothing to the user."""

from __future__ import annotations

import logging
import threading
import warnings

from synflow_pl.io import storage_error

__all__ = ["quieten"]


def quieten() -> None:
    """Silence messages that Lightning logs at every start, and a deprecation within Lightning.

    They are advertisements, checkpoint paths, and the seed, which is in the run's name already.
    """
    for name in (
        "pytorch_lightning.utilities.rank_zero",
        "lightning_fabric.utilities.seed",
        "lightning_fabric.utilities.rank_zero",
    ):
        logging.getLogger(name).addFilter(_is_informative)
    # Only a new version of Lightning can mend this deprecation.
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*")
    threading.excepthook = _report_thread


def _report_thread(failure: threading.ExceptHookArgs) -> None:
    """Report an error in a thread, unless it is a storage error in TensorBoard's writer thread.

    TensorBoard raises such an error again in the main thread.
    """
    if (
        type(failure.thread).__module__.startswith("tensorboard.")
        and storage_error(failure.exc_value) is not None
    ):
        return
    threading.__excepthook__(failure)


def _is_informative(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(
        text in message
        for text in ("Tip:", "Seed set to", "Restoring states from", "Restored all states from")
    )
