from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from synflow_pl import data
from synflow_pl.cli import main
from synflow_pl.data import ImageDataModule

DATA_SETS = [getattr(data, name) for name in data.__all__ if name != "ImageDataModule"]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


def random_images(self: ImageDataModule, train: bool) -> tuple[Tensor, Tensor]:
    """Random images of a data set's shape, twenty of each class: a tenth held out, there are enough
    of each to prune on.
    """
    count = 20 * self.num_classes
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *self.input_shape), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % self.num_classes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with no data and no memory of other runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNFLOW_DATA", str(tmp_path / "no-data"))
    monkeypatch.setenv(main._CLAIMED, "")  # so that it is restored afterwards
    monkeypatch.delenv(main._CLAIMED)
    return tmp_path


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every data set holds random images of the right shape, and none is downloaded."""
    for kind in DATA_SETS:
        monkeypatch.setattr(kind, "prepare_data", lambda self: None)
        monkeypatch.setattr(kind, "images", random_images)


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the data sets that were touched."""
    names: list[str] = []
    for kind in [ImageDataModule, *DATA_SETS]:
        for method in ("prepare_data", "setup", "images", "dataset"):
            monkeypatch.setattr(
                kind, method, lambda self, *_, kind=kind, **__: names.append(kind.__name__)
            )
    return names


@pytest.fixture
def built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., main.CLI]:
    """Parses a command line and builds everything, but runs nothing."""
    monkeypatch.setattr(main.CLI, "_run_subcommand", lambda self, name: None)
    return lambda *args: main.run(list(args))
