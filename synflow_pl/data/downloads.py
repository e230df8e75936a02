"""Downloads: a file or a folder is there whole, or not at all. Everything is written beside its
place and then renamed.
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

__all__ = ["check_md5", "fetch", "gunzip", "unpack", "written"]

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_SILENCE = 60  # seconds without a byte after which a server is given up


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, which takes its name at the end; after an error nothing is
    left of it.

    Raises:
        OSError: with one sentence, if the disk is full or may not be written to.
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
        elif temporary.exists():  # on a read-only disk even taking away what is not there fails
            temporary.unlink()


def check_md5(path: Path, md5: str) -> None:
    """Refuse a file that is not the one meant.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if its MD5 is another.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {str(path)!r}; delete its folder, and the data set will be"
            " downloaded again"
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        raise ValueError(
            f"{str(path)!r} is not the file that was published: its md5 is {found}, expected"
            f" {md5}; delete it, and the data set will be"
            " downloaded again"
        )


def fetch(urls: Sequence[str], path: Path, md5: str) -> None:
    """Download a file, unless it is there. Says how large it is and shows progress.

    Args:
        urls: addresses, tried in turn.
        path: of the file.
        md5: checked also where the file is there.

    Raises:
        ConnectionError: if no address answers with the whole file.
        ValueError: if the MD5 is another.
        OSError: if it cannot be written.
    """
    if path.exists():
        check_md5(path, md5)
        return
    with written(path) as temporary:
        told = []
        for url in urls:
            try:
                with urlopen(
                    Request(url, headers={"User-Agent": "synflow_pl"}), timeout=_SILENCE
                ) as answer:
                    _save(answer, temporary, path)
                break
            except OSError as error:
                if error.errno in _DISK:
                    raise
                told.append(f"{url} ({error})")
        else:
            raise ConnectionError(
                f"{path.name} cannot be downloaded from {' nor from '.join(told)}; try again, or"
                f" put it into {str(path.parent)!r}"
                " yourself"
            )
        with temporary.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != md5:
            raise ValueError(
                f"the download of {path.name} has md5 {found}, expected {md5}; it was thrown away,"
                " try again"
            )


def _save(answer: Any, temporary: Path, path: Path) -> None:
    size = int(answer.headers.get("Content-Length") or 0)
    rank_zero_info(
        f"Downloading {path.name} ({f'{size / 1e6:,.0f} MB' if size else 'size not told'}) to"
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

    Raises:
        ValueError: if it is damaged.
        OSError: if the result cannot be written.
    """
    try:
        with written(path) as temporary, gzip.open(archive) as source, temporary.open("wb") as file:
            shutil.copyfileobj(source, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{str(archive)!r} is damaged ({error}); delete it, and it will be downloaded again"
        ) from error


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the folder of the same name in a zip or tar file. Says how large it is and shows
    progress.

    Args:
        archive: ``.zip`` or a tar file, compressed or not; holds one folder, named ``folder.name``.
            A zip file has checksums, a tar file has none: check its MD5 before.
        folder: where it shall lie; must not exist.

    Raises:
        ValueError: if the archive is damaged, or holds a path that leads out of the folder or a
            link; nothing is unpacked then.
        OSError: if it cannot be written.
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
            with written(folder) as temporary, _bar(size, "Unpacking") as bar:
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
    plain: bool  # no link, no device
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
        _Member(info.name, info.size, info.isfile(), partial(archive.extractfile, info))  # type: ignore[arg-type]  # no plain file is None
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
            f"{str(archive)!r} holds {member.name!r}, which is no plain file within the folder"
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
