import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from synflow_pl import data
from synflow_pl.cli import main
from synflow_pl.cli.run_opening import CLAIMED
from synflow_pl.cli.session import Session
from synflow_pl.data import ImageDataModule

DATA_SETS = [getattr(data, name) for name in data.__all__ if name != "ImageDataModule"]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


def random_images(self: ImageDataModule, train: bool) -> tuple[Tensor, Tensor]:
    """Return random images of a data set's shape and their labels.

    There are twenty of each class: enough to prune on after a tenth is held out for validation.
    """
    count = 20 * self.num_classes
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *self.input_shape), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % self.num_classes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty working directory, without data sets and without a claimed run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNFLOW_DATA", str(tmp_path / "no-data"))
    # Set before it is deleted, so that monkeypatch restores it even if it was not set.
    monkeypatch.setenv(CLAIMED, "")
    monkeypatch.delenv(CLAIMED)
    return tmp_path


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace every data set's images by random ones of the same shape, without a download."""
    for kind in DATA_SETS:
        monkeypatch.setattr(kind, "prepare_data", lambda self: None)
        monkeypatch.setattr(kind, "images", random_images)


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the names of the data sets that are downloaded or read; their methods do nothing."""
    names: list[str] = []
    for kind in [ImageDataModule, *DATA_SETS]:
        for method in ("prepare_data", "setup", "images", "dataset"):
            monkeypatch.setattr(
                kind, method, lambda self, *_, kind=kind, **__: names.append(kind.__name__)
            )
    return names


@pytest.fixture
def built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Session]:
    """Return a function that parses a command line and builds everything, but runs nothing."""
    monkeypatch.setattr(Session, "execute", lambda self, name: None)
    return lambda *args: main.run(list(args))


@pytest.fixture
def port() -> str:
    with socket.socket() as free:
        free.bind(("", 0))
        return str(free.getsockname()[1])


@pytest.fixture
def nodes() -> Iterator[list[tuple[str, str]]]:
    """Yield the names and interfaces of two connected network namespaces.

    The first has the address 10.77.0.1.
    """
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need the command ip and root")
    names = [f"synflow_{os.getpid()}_{node}" for node in range(2)]
    created: list[str] = []
    try:
        for name in names:
            done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespace can be made here: {done.stderr.strip()}")
            created.append(name)
        commands = ["ip link add veth0 netns {0} type veth peer name veth1 netns {1}"]
        for node in range(2):
            own = f"ip -n {{{node}}} "
            commands += [
                f"{own}link set lo up",
                f"{own}addr add 10.77.0.{node + 1}/24 dev veth{node}",
                f"{own}link set veth{node} up",
            ]
        for command in commands:
            subprocess.run(command.format(*names).split(), check=True)
        yield [(name, f"veth{node}") for node, name in enumerate(names)]
    finally:
        for name in created:
            subprocess.run(["ip", "netns", "del", name], check=True)
