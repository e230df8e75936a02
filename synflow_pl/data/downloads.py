"""Download and unpack files: a file or folder appears under its name complete or not at all.

Everything is written to a temporary path beside its target and then renamed.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple
from urllib.request import Request, urlopen

from pytorch_lightning.utilities import rank_zero_info
from tqdm import tqdm

__all__ = ["atomic_path", "check_md5", "fetch", "gunzip", "unpack"]

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_TIMEOUT = 60  # seconds without a byte after which a download is abandoned


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Provide a temporary path beside ``path`` that is renamed to ``path`` at the end of the block.

    After an error the temporary file or folder is removed.

    Args:
        path: Path of the file or folder to write.

    Yields:
        The temporary path.

    Raises:
        OSError: If the disk is full or not writable, with a one-sentence message.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise OSError(
            f"{str(path)!r} cannot be written ({error.strerror}); make room or choose another"
            " folder with --data.data_dir"
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        elif temporary.exists():  # on a read-only disk unlink fails even if there is no file
            temporary.unlink()


def check_md5(path: Path, md5: str) -> None:
    """Check the MD5 of a file.

    Args:
        path: Path of the file.
        md5: Expected MD5, in hexadecimal.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If its MD5 is another.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {str(path)!r}; delete its folder, and the data set will be"
            " downloaded again"
        )
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "md5").hexdigest()
    if actual != md5:
        raise ValueError(
            f"{str(path)!r} is not the file that was published: its md5 is {actual}, expected"
            f" {md5}; delete it, and the data set will be"
            " downloaded again"
        )


def fetch(urls: Sequence[str], path: Path, md5: str) -> None:
    """Download a file if it does not exist, with a message about its size and a progress bar.

    Args:
        urls: Addresses, tried in order.
        path: Path of the file.
        md5: Expected MD5, in hexadecimal; also checked if the file exists already.

    Raises:
        ConnectionError: If no address delivers the complete file.
        ValueError: If the MD5 is another.
        OSError: If the file cannot be written.
    """
    if path.exists():
        check_md5(path, md5)
        return
    with atomic_path(path) as temporary:
        failures = []
        for url in urls:
            try:
                with urlopen(
                    Request(url, headers={"User-Agent": "synflow_pl"}), timeout=_TIMEOUT
                ) as answer:
                    _save(answer, temporary, path)
                break
            except OSError as error:
                if error.errno in _DISK:
                    raise
                failures.append(f"{url} ({error})")
        else:
            raise ConnectionError(
                f"{path.name} cannot be downloaded from {' nor from '.join(failures)}; try again,"
                f" or put it into {str(path.parent)!r} yourself"
            )
        with temporary.open("rb") as file:
            actual = hashlib.file_digest(file, "md5").hexdigest()
        if actual != md5:
            raise ValueError(
                f"the download of {path.name} has md5 {actual}, expected {md5}; it was deleted,"
                " try again"
            )


def _save(answer: Any, temporary: Path, path: Path) -> None:
    size = int(answer.headers.get("Content-Length") or 0)
    rank_zero_info(
        f"Downloading {path.name} ({f'{size / 1e6:,.0f} MB' if size else 'size unknown'}) to"
        f" {path.parent}"
    )
    if size:
        _check_room(path, size)
    with temporary.open("wb") as file, _bar(size, "Downloading") as bar:
        while chunk := answer.read(1 << 20):
            file.write(chunk)
            bar.update(len(chunk))
    if size and temporary.stat().st_size != size:
        raise ConnectionError(
            f"the connection ended after {temporary.stat().st_size:,} of {size:,} bytes"
        )


def gunzip(archive: Path, path: Path) -> None:
    """Decompress a ``.gz`` file.

    Args:
        archive: Path of the compressed file.
        path: Path of the result.

    Raises:
        ValueError: If the archive is damaged.
        OSError: If the result cannot be written.
    """
    try:
        with (
            atomic_path(path) as temporary,
            gzip.open(archive) as source,
            temporary.open("wb") as file,
        ):
            shutil.copyfileobj(source, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{str(archive)!r} is damaged ({error}); delete it, and it will be downloaded again"
        ) from error


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the folder in a zip or tar archive, with a message about its size and a progress bar.

    Args:
        archive: Path of a ``.zip`` file or of a tar file, compressed or not, that contains one
            folder named ``folder.name``. Zip files contain checksums; tar files do not, so check
            their MD5 first.
        folder: Path of the unpacked folder, which must not exist.

    Raises:
        ValueError: If the archive is damaged, or contains a link or a path outside the folder;
            nothing is unpacked then.
        OSError: If the folder cannot be written.
    """
    try:
        with (
            zipfile.ZipFile(archive)
            if archive.suffix == ".zip"
            else tarfile.open(archive) as opened
        ):
            members = _zip(opened) if isinstance(opened, zipfile.ZipFile) else _tar(opened)
            for member in members:
                _check_inside(member, archive, folder.name)
            size = sum(member.size for member in members)
            rank_zero_info(
                f"Unpacking {archive.name} ({size / 1e6:,.0f} MB in {len(members):,} files) to"
                f" {folder}"
            )
            with atomic_path(folder) as temporary, _bar(size, "Unpacking") as bar:
                _check_room(folder, size)
                for member in members:
                    target = temporary.joinpath(*PurePosixPath(member.name).parts[1:])
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with member.open() as source, target.open("wb") as file:
                        shutil.copyfileobj(source, file)
                    bar.update(member.size)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise ValueError(
            f"{str(archive)!r} is damaged ({reason}); delete it, and it will be downloaded again"
        ) from error


class _Member(NamedTuple):
    name: str
    size: int  # bytes
    plain: bool  # a regular file: not a link and not a device
    open: Callable[[], IO[bytes]]


def _zip(archive: zipfile.ZipFile) -> list[_Member]:
    return [
        _Member(
            info.filename,
            info.file_size,
            not stat.S_ISLNK(info.external_attr >> 16),
            partial(archive.open, info),
        )
        for info in archive.infolist()
        if not info.is_dir()
    ]


def _tar(archive: tarfile.TarFile) -> list[_Member]:
    return [
        _Member(info.name, info.size, info.isfile(), partial(archive.extractfile, info))  # type: ignore[arg-type]  # None only for members that are not regular files
        for info in archive.getmembers()
        if not info.isdir()
    ]


def _check_inside(member: _Member, archive: Path, folder: str) -> None:
    parts = PurePosixPath(member.name).parts
    if (
        not member.plain
        or ".." in parts
        or "\\" in member.name
        or parts[0] != folder
        or len(parts) == 1
    ):
        raise ValueError(
            f"{str(archive)!r} holds {member.name!r}, which is not a regular file within the folder"
            f" {folder!r}; nothing was unpacked, do not"
            " trust this archive"
        )


def _check_room(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise OSError(
            errno.ENOSPC, f"{size / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
        )


def _bar(size: int, what: str) -> Any:
    return tqdm(total=size or None, desc=what, unit="B", unit_scale=True, leave=False)
