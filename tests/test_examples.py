"""The examples in docstrings run and print what they show."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch

import synflow_pl


def modules_with_examples() -> list[str]:
    root = Path(synflow_pl.__file__).parent
    names = [module.name for module in pkgutil.walk_packages([str(root)], "synflow_pl.")]
    files = {name: root.joinpath(*name.split(".")[1:]) for name in names}
    return [
        name
        for name, path in files.items()
        if ">>>" in (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    ]


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_print_what_they_show(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
