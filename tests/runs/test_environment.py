"""Record of the machines that a run was made on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import pytorch_lightning

from synflow_pl import __version__
from synflow_pl.runs import MACHINES
from synflow_pl.runs import environment as module


def test_a_run_lists_each_machine_that_worked_on_it_once_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a laptop", "a laptop", "a GPU", "a laptop"):
        monkeypatch.setattr(module, "environment", lambda name=name: name)
        module.record_environment(tmp_path)
    assert (tmp_path / MACHINES).read_text() == "a laptop\na GPU\n"
    assert [path.name for path in tmp_path.iterdir()] == [MACHINES]


def test_a_machine_is_described_by_processor_gpus_and_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(module.torch.cuda, "get_device_name", lambda: "NVIDIA X")
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(module.os, "cpu_count", lambda: 16)
    line = module.environment()
    assert line.startswith("x86_64 of 16 cores, 2 x NVIDIA X, Python 3.")
    assert f"torch {module.torch.__version__}, Lightning {pytorch_lightning.__version__}," in line
    assert f", synflow_pl {__version__}" in line


def test_the_commit_of_a_checkout_is_named_and_says_if_files_were_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "synflow_pl" / "runs" / "environment.py"
    package.parent.mkdir(parents=True)
    package.write_text("")
    monkeypatch.setattr(module, "__file__", str(package))
    assert module.environment().endswith(f"synflow_pl {__version__}")
    author = {"user.name": "a", "user.email": "a@b", "commit.gpgsign": "false"}
    git = ["git", *(text for key, value in author.items() for text in ("-c", f"{key}={value}"))]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    named = re.search(r"synflow_pl \S+ \(([0-9a-f]{7,})\)$", module.environment())
    assert named
    package.write_text("# changed")
    assert module.environment().endswith(f"({named[1]}-dirty)")
