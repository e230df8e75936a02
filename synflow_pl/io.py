"""Durable files: one appears under its name whole or not at all, whatever happens meanwhile, and
then stays.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

__all__ = [
    "atomic_write",
    "cannot_make",
    "check_folder",
    "could_not_write",
    "explain",
    "make_folder",
    "remove_partial_files",
    "storage_error",
]

# Ends the name of a file that is being written; nothing that is looked for ends so.
_UNFINISHED = ".unfinished"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_UNREACHABLE = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENODEV, errno.ENXIO)
_NO_FOLDER = (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write into, which replaces ``path`` at the end of the ``with``, or not at all if
    that is left by an error.

    It is written beside its target, since a rename is one step only within a file system, and
    reaches the disk before its name does.

    Raises:
        OSError: if it cannot be written; what was there before is whole.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"{str(path)!r} is there and is no ordinary file; choose another path")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED
        )
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(handle)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        if temporary is not None:
            with suppress(
                OSError
            ):  # a file system that became read-only or went away; the error below says so
                Path(temporary).unlink(missing_ok=True)
        # torch.save turns a full disk into a RuntimeError about positions in the file; the OSError
        # is its context.
        cause = error if isinstance(error, OSError) else storage_error(error)
        if cause is None or (
            cause.errno is None and cause.__cause__ is not None
        ):  # the latter is a sentence of this module already
            raise
        raise OSError(could_not_write(path, cause)) from error


def storage_error(error: BaseException | None) -> OSError | None:
    """Return the first error in a chain of causes and contexts which says that the storage failed,
    or ``None``.

    Storage fails when it is full, over a quota, read-only, forbidden, unreachable, or when a file
    is in the place of a folder.

    Args:
        error: outermost error of the chain.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (
            *_FULL,
            *_FORBIDDEN,
            *_UNREACHABLE,
            *_NO_FOLDER,
        ):
            return error
        error = error.__cause__ or error.__context__
    return None


def could_not_write(path: str | os.PathLike[str] | None, error: OSError) -> str:
    """Return one sentence which says that a file could not be written, why, and what to do.

    Args:
        path: path of the file; by default the one that the error names.
        error: error of the operating system.
    """
    name = path if path is not None else error.filename
    what = repr(str(name)) if name is not None else "a file"
    action = "written" if path is not None else "read or written"
    if error.errno in _FORBIDDEN:
        instead = "choose a folder that can be written, or change its permissions"
    elif error.errno in _NO_FOLDER:
        instead = "move away the file that is in the place of a folder, or choose another folder"
    elif error.errno in _UNREACHABLE:
        instead = "see to the disk or the connection and start again"
    else:
        instead = "make room and start again"
    return (
        f"{what} could not be {action} ({error.strerror or error}); what was there before is"
        f" whole, {instead}"
    )


def explain(error: BaseException) -> str:
    """Return one sentence about an error: what :func:`could_not_write` says of a storage that
    failed, else the error's own message.

    Args:
        error: an error of the operating system, or one whose message is a sentence already.
    """
    raw = isinstance(error, OSError) and storage_error(error) is error
    return " ".join((could_not_write(None, error) if raw else str(error)).split())  # type: ignore[arg-type]


def make_folder(path: str | os.PathLike[str], option: str = "") -> None:
    """Make a folder and its parents, if they do not exist.

    Args:
        path: path of the folder.
        option: option of the command line that chooses the folder.

    Raises:
        OSError: naming the folder, and the file that is in its place if one is.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(cannot_make(path, error, option)) from error


def cannot_make(path: Path, error: OSError, option: str = "") -> str:
    """Return one sentence which says that a folder cannot be made, why, and what to do.

    Args:
        path: path of the folder.
        error: error of the operating system.
        option: option of the command line that chooses the folder.
    """
    by = f" ({option})" if option else ""
    file = next(
        (each for each in (path, *path.parents) if os.path.lexists(each) and not each.is_dir()),
        None,
    )
    if file is not None and file.is_symlink() and not file.exists():
        why = (
            f"{str(file)!r} is a link to {os.readlink(file)!r}, which does not exist; remove the"
            f" link, or choose another folder{by}"
        )
    elif file is not None:
        why = f"{str(file)!r} is a file; move it away, or choose another folder{by}"
    elif error.errno in _FULL:
        why = f"{error.strerror}; make room and start again"
    else:
        why = f"{error.strerror or error}; choose a folder that can be written{by}"
    return f"the folder {str(path)!r} cannot be made: {why}"


def check_folder(path: str | os.PathLike[str], option: str) -> None:
    """Make a folder if it does not exist, and check before long work that files can be written into
    it.

    Args:
        path: path of the folder.
        option: option of the command line that chooses the folder.

    Raises:
        OSError: naming the folder, the cause and the option.
    """
    try:
        make_folder(path)
    except OSError as error:
        raise OSError(f"{option}: {error}") from error
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        why = f"{error.strerror}; choose a folder that can be written, or change its permissions"
        raise OSError(f"{option}: nothing can be written into {str(path)!r}: {why}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder that nobody else writes into."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        path.unlink(missing_ok=True)
