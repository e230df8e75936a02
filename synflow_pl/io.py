"""Write files atomically (a file appears under its name complete or not at all), and lock them.

The functions that turn a failure of the storage into a one-sentence message are here too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

__all__ = [
    "atomic_write",
    "check_folder",
    "explain",
    "folder_error_message",
    "lock_file",
    "make_folder",
    "remove_partial_files",
    "storage_error",
    "write_error_message",
]

# Suffix of a file that is being written; no pattern that the package searches for matches it.
_UNFINISHED = ".unfinished"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_UNREACHABLE = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENODEV, errno.ENXIO)
_NO_FOLDER = (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces ``path`` when the ``with`` block ends without an error.

    The temporary file is in the folder of ``path``, since a rename is atomic only within a file
    system, and its content is flushed to the disk before it is renamed.

    Args:
        path: Path of the file to write; missing parent folders are created.

    Yields:
        The temporary file, open for writing bytes.

    Raises:
        OSError: If the file cannot be written; a previous file at ``path`` is unchanged.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_write(folder / "numbers.txt") as file:
        ...     _ = file.write(b"1 2 3")
        >>> (folder / "numbers.txt").read_bytes()
        b'1 2 3'
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"{str(path)!r} exists and is not a regular file; choose another path")
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
            # This fails too if the file system is now read-only or gone; the error below says so.
            with suppress(OSError):
                Path(temporary).unlink(missing_ok=True)
        # torch.save raises a RuntimeError about file positions if the disk is full, with the
        # OSError as its context.
        cause = error if isinstance(error, OSError) else storage_error(error)
        # An OSError without errno but with a cause already has a message made by this module.
        if cause is None or (cause.errno is None and cause.__cause__ is not None):
            raise
        raise OSError(write_error_message(path, cause)) from error


@contextmanager
def lock_file(path: str | os.PathLike[str]) -> Iterator[IO[str] | None]:
    """Hold an exclusive lock on a file until the block or the process ends.

    The lock holds on every machine that shares the folder. It is released even if the process is
    killed, unless a child process has inherited the open file.

    Args:
        path: Path of the file, which is created if it does not exist. Its content is kept.

    Yields:
        The file, open for reading and appending; ``None`` if another process holds the lock.

    Raises:
        OSError: If the file cannot be opened, or the file system does not support locks.
    """
    # The package filelock does not serve here: its versions before 4 truncate the file that they
    # lock, it gives no file that a child process can inherit, and where flock is missing it writes
    # a marker, which a killed process leaves behind.
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file


def storage_error(error: BaseException | None) -> OSError | None:
    """Return the first error in a chain of causes and contexts that reports a storage failure.

    A storage failure is a disk that is full, over quota, read-only, forbidden or unreachable, or a
    file in the place of a folder.

    Args:
        error: Outermost error of the chain.

    Returns:
        The error, or ``None`` if no error of the chain reports such a failure.
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


def write_error_message(path: str | os.PathLike[str] | None, error: OSError) -> str:
    """Return a one-sentence message: which file could not be written, why, and what to do.

    Args:
        path: Path of the file; ``None`` takes the path stored in ``error``.
        error: Error of the operating system.
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
    """Return a one-sentence message about an error.

    An error of the storage is explained by :func:`write_error_message`; any other error keeps its
    own message, on one line.

    Args:
        error: Error of the operating system, or an error whose message is already a sentence.
    """
    raw = isinstance(error, OSError) and storage_error(error) is error
    message = write_error_message(None, error) if raw else str(error)  # type: ignore[arg-type]
    return " ".join(message.split())


def make_folder(path: str | os.PathLike[str], option: str = "") -> None:
    """Create a folder and its parents if they do not exist.

    Args:
        path: Path of the folder.
        option: Command-line option that sets the folder, named in the error message.

    Raises:
        OSError: If the folder cannot be created; the message names the folder and, if there is one,
            the file in its place.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(folder_error_message(path, error, option)) from error


def folder_error_message(path: Path, error: OSError, option: str = "") -> str:
    """Return a one-sentence message: which folder cannot be created, why, and what to do.

    Args:
        path: Path of the folder.
        error: Error of the operating system.
        option: Command-line option that sets the folder, named in the message.
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
    """Create a folder if it does not exist, and check that files can be written into it.

    Called before long computations, so that an unusable folder is reported before they start.

    Args:
        path: Path of the folder.
        option: Command-line option that sets the folder, named in the error message.

    Raises:
        OSError: If the folder cannot be created or written to; the message names the folder, the
            cause and the option.
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
    """Remove the unfinished files that killed processes left in a folder.

    Args:
        folder: Folder that no other process is writing to.
    """
    for path in folder.glob(f".*{_UNFINISHED}"):
        path.unlink(missing_ok=True)
