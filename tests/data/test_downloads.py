"""Downloads and archives: complete or absent, with errors of one sentence.

No network is needed: the addresses are those of files.
"""

import gzip
import hashlib
import io
import multiprocessing
import os
import re
import resource
import stat
import subprocess
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tqdm import tqdm

from synflow_pl.data import CIFAR10, MNIST
from synflow_pl.data import cifar10 as cifar10_module
from synflow_pl.data.downloads import atomic_path, fetch, gunzip, unpack
from tests.data.generated import TwoClasses, cifar, mnist, tiny_imagenet


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "server" / "file.bin"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 1000)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data" / "file.bin"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


# -- fetch


def test_a_download_reports_its_size_shows_progress_and_writes_its_path(
    tmp_path: Path,
    target: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(bytes(3_000_000))
    with caplog.at_level("INFO"):
        fetch([path.as_uri()], target, md5_of(path))
    assert target.read_bytes() == path.read_bytes()
    assert left(target.parent) == ["file.bin"]
    assert f"Downloading file.bin (3 MB) to {target.parent}" in caplog.text
    assert re.search(r"Downloading: +0%.*/3.00M", capsys.readouterr().err)


def test_the_second_address_is_tried_if_the_first_fails(source: Path, target: Path) -> None:
    fetch([(source.parent / "none").as_uri(), source.as_uri()], target, md5_of(source))
    assert target.read_bytes() == source.read_bytes()


def test_an_error_of_every_address_is_one_sentence(source: Path, target: Path) -> None:
    with pytest.raises(
        ConnectionError,
        match=r"^file.bin cannot be downloaded from file://.*none \(.*\); try again,"
        " or put it into",
    ):
        fetch([(source.parent / "none").as_uri()], target, md5_of(source))
    assert left(target.parent) == []


def test_a_download_with_another_md5_is_deleted(source: Path, target: Path) -> None:
    with pytest.raises(
        ValueError,
        match=rf"has md5 {md5_of(source)}, expected {'0' * 32}; it was deleted, try again",
    ):
        fetch([source.as_uri()], target, "0" * 32)
    assert left(target.parent) == []


def test_an_existing_file_is_checked_and_kept(source: Path, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"half")
    with pytest.raises(
        ValueError,
        match=rf"is not the file that was published: its md5 is {md5_of(target)}, expected",
    ):
        fetch([source.as_uri()], target, md5_of(source))
    assert target.read_bytes() == b"half"  # a user's file is not deleted
    target.write_bytes(source.read_bytes())
    fetch(["nowhere:"], target, md5_of(source))


def test_a_connection_that_ends_early_leaves_no_file(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Half(io.BytesIO):
        headers = {"Content-Length": "1000"}

    monkeypatch.setattr("synflow_pl.data.downloads.urlopen", lambda *_, **__: Half(bytes(300)))
    with pytest.raises(ConnectionError, match=r"the connection ended after 300 of 1,000 bytes"):
        fetch(["http://somewhere"], target, "0" * 32)
    assert left(target.parent) == []


def test_a_killed_download_is_not_mistaken_for_a_complete_file(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless(io.BytesIO):
        headers: dict[str, str] = {}

        def read(self, _: int | None = None) -> bytes:
            time.sleep(0.01)
            return b"x"

    with monkeypatch.context() as patch:
        patch.setattr("synflow_pl.data.downloads.urlopen", lambda *_, **__: Endless())

        def download() -> None:
            # Progress bars of forked processes share a lock, which a killed one does not release.
            tqdm.set_lock(threading.RLock())
            fetch(["http://somewhere"], target, "0" * 32)

        process = multiprocessing.get_context("fork").Process(target=download)
        process.start()
        deadline = time.monotonic() + 30
        while not left(target.parent) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.join()
    assert left(target.parent)[0].endswith(".part")
    assert not target.exists()
    fetch([source.as_uri()], target, md5_of(source))
    assert target.read_bytes() == source.read_bytes()


# -- archives


def zipped(folder: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    path = folder / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for name, to in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, to)
    return path


def tarred(folder: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    path = folder / "set.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, to in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, to
            archive.addfile(info)
    return path


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_is_unpacked_to_a_folder(pack: object, tmp_path: Path) -> None:
    archive = pack(tmp_path, {"set/a.txt": b"1", "set/deep/b.txt": b"2"})  # type: ignore[operator]
    unpack(archive, tmp_path / "set")
    assert (tmp_path / "set" / "a.txt").read_bytes() == b"1"
    assert (tmp_path / "set" / "deep" / "b.txt").read_bytes() == b"2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", archive.name]


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize(
    "name", ["../evil", "set/../../evil", "/evil", "other/evil", "set\\..\\evil", "evil"]
)
def test_a_path_outside_the_folder_is_refused(name: str, pack: object, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    archive = pack(inside, {"set/a.txt": b"1", name: b"2"})  # type: ignore[operator]
    with pytest.raises(
        ValueError,
        match=r"evil', which is not a regular file within the folder 'set'; nothing was unpacked",
    ):
        unpack(archive, inside / "set")
    assert left(inside) == [archive.name]
    assert left(tmp_path) == ["inside", archive.name]


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_link_in_an_archive_is_refused(pack: object, tmp_path: Path) -> None:
    archive = pack(tmp_path, {"set/a.txt": b"1"}, {"set/passwd": "/etc/passwd"})  # type: ignore[operator]
    with pytest.raises(ValueError, match="holds 'set/passwd', which is not a regular file"):
        unpack(archive, tmp_path / "set")
    assert left(tmp_path) == [archive.name]


@pytest.mark.parametrize(
    ("pack", "damage"), [(zipped, "cut"), (zipped, "changed"), (tarred, "cut")]
)
def test_a_damaged_archive_is_refused_and_leaves_no_folder(
    pack: object, damage: str, tmp_path: Path
) -> None:
    archive = pack(tmp_path, {"set/a.txt": os.urandom(5000), "set/b.txt": b"2"})  # type: ignore[operator]
    content = bytearray(archive.read_bytes())
    content = content[:3000] if damage == "cut" else content[:2000] + bytes(1000) + content[3000:]
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"set\.\w+' is damaged \(.+\); delete it"):
        unpack(archive, tmp_path / "set")
    assert left(tmp_path) == [archive.name]


def test_a_damaged_gz_file_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    archive = tmp_path / "a.gz"
    archive.write_bytes(gzip.compress(os.urandom(5000))[:3000])
    with pytest.raises(ValueError, match=r"a.gz' is damaged"):
        gunzip(archive, tmp_path / "a")
    assert left(tmp_path) == ["a.gz"]


# -- data sets from their archives


def test_tiny_imagenet_is_downloaded_and_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_imagenet(TwoClasses, tmp_path / "made", 4)
    with zipfile.ZipFile(tmp_path / "tiny.zip", "w") as archive:
        for path in sorted((tmp_path / "made").rglob("*")):
            archive.write(path, path.relative_to(tmp_path / "made"))
    monkeypatch.setattr(TwoClasses, "url", (tmp_path / "tiny.zip").as_uri())
    monkeypatch.setattr(TwoClasses, "md5", md5_of(tmp_path / "tiny.zip"))
    data = TwoClasses(data_dir=str(tmp_path / "data"), val_size=0)
    data.prepare_data()
    data.setup("fit")
    assert len(data.train_dataloader()) == 1
    assert sorted(path.name.split("-")[-2] for path in (tmp_path / "data").glob("*.npy")) == [
        "train",
        "val",
    ]


def test_cifar10_is_downloaded_and_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar(CIFAR10, tmp_path / "made", 10)
    files = {
        f"cifar-10-batches-py/{path.name}": path.read_bytes()
        for path in (tmp_path / "made" / "cifar-10-batches-py").iterdir()
    }
    archive = tarred(tmp_path, files)
    monkeypatch.setattr(CIFAR10.origin, "url", archive.as_uri())
    monkeypatch.setattr(CIFAR10.origin, "tgz_md5", md5_of(archive))
    monkeypatch.setattr(cifar10_module, "check_md5", lambda *_: None)
    data = CIFAR10(data_dir=str(tmp_path / "data"))
    data.prepare_data()
    assert len(data.images(train=True)[1]) == 10


def test_mnist_is_downloaded_and_decompressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mnist(MNIST, tmp_path / "made", 4)
    resources = []
    for path in sorted((tmp_path / "made" / "MNIST" / "raw").iterdir()):
        archive = tmp_path / f"{path.name}.gz"
        archive.write_bytes(gzip.compress(path.read_bytes()))
        resources.append((archive.name, md5_of(archive)))
    monkeypatch.setattr(MNIST.origin, "resources", resources)
    monkeypatch.setattr(MNIST.origin, "mirrors", ["file:///nowhere/", f"{tmp_path.as_uri()}/"])
    data = MNIST(data_dir=str(tmp_path / "data"))
    data.prepare_data()
    assert len(data.images(train=True)[1]) == 4


# -- a full or read-only disk


@contextmanager
def full_disk() -> Iterator[None]:
    """Limit files to 10 kB, so that larger ones fail as on a full disk, for root too.

    This is not a fixture, since the limit has to be removed before pytest writes its output, which
    may go to a larger file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


CANNOT = r"cannot be written \(.+\); make room or choose another folder with --data.data_dir"


def test_a_full_disk_is_reported_in_one_sentence_for_a_download(source: Path, target: Path) -> None:
    with full_disk(), pytest.raises(OSError, match=CANNOT):
        fetch([source.as_uri()], target, md5_of(source))
    assert left(target.parent) == []


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_full_disk_is_reported_in_one_sentence_for_an_archive(
    pack: object, tmp_path: Path
) -> None:
    archive = pack(tmp_path, {"set/a.txt": b"1", "set/b.txt": bytes(100_000)})  # type: ignore[operator]
    with full_disk(), pytest.raises(OSError, match=CANNOT):
        unpack(archive, tmp_path / "set")
    assert left(tmp_path) == [archive.name]


def test_a_full_disk_is_reported_in_one_sentence_for_the_decoded_images(tmp_path: Path) -> None:
    tiny_imagenet(TwoClasses, tmp_path, 4)
    with full_disk(), pytest.raises(OSError, match=CANNOT):
        TwoClasses(data_dir=str(tmp_path)).prepare_data()
    assert left(tmp_path)[0] != "tiny-imagenet-200-train"
    assert (
        not list(tmp_path.glob("*.npy")) + list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*"))
    )


def test_too_little_space_is_reported_before_anything_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zipped(tmp_path, {"set/a.txt": bytes(3_000_000)})
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(OSError, match=r"cannot be written \(3 MB are needed, 1 MB are free\)"):
        unpack(archive, tmp_path / "set")
    assert left(tmp_path) == [archive.name]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """Provide a read-only file system, which root cannot write to; else a read-only folder."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode == 0:
        yield folder
        subprocess.run(["umount", str(folder)], check=True)
        return
    if os.geteuid() == 0:
        pytest.skip("root may write to every folder, and may not mount here")
    folder.chmod(0o500)
    yield folder
    folder.chmod(0o700)


def test_a_read_only_disk_is_reported_in_one_sentence(
    read_only: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match=CANNOT):
        fetch([source.as_uri()], read_only / "data" / "file.bin", md5_of(source))
    monkeypatch.setattr(TwoClasses, "url", source.as_uri())
    with pytest.raises(OSError, match=CANNOT):
        TwoClasses(data_dir=str(read_only)).prepare_data()
    assert left(read_only) == []


def test_an_interrupted_write_is_cleaned_up(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert left(tmp_path) == []
