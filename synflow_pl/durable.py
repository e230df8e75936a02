"""Durable files: one appears under its name whole or not at all, whatever happens meanwhile, and then stays."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["replacing", "tidy"]

# Ends the name of a file that is being written; nothing that is looked for ends so.
_UNFINISHED = ".unfinished"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write into, which replaces ``path`` at the end of the ``with``, or not at all if that is left by an error.

    It is written beside its target, since a rename is one step only within a file system, and reaches the disk before its name does.

    Raises:
        OSError: if it cannot be written; what was there before is whole.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"{str(path)!r} is there and is no ordinary file; choose another path")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(handle)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            why = error.strerror or error
            told = f"{str(path)!r} could not be written ({why}); what was there before is whole, make room and start again"
            raise OSError(told) from error
        raise


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def tidy(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder that nobody else writes into."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        path.unlink(missing_ok=True)
