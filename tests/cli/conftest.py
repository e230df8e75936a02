from collections.abc import Callable
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
