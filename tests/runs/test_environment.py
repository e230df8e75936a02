"""Record of the machines that a run was made on."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_a_machine_is_described_by_processor_gpus_and_versions_of_python_and_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(module.torch.cuda, "get_device_name", lambda: "NVIDIA X")
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(module.os, "cpu_count", lambda: 16)
    line = module.environment()
    assert line.startswith("x86_64 of 16 cores, 2 x NVIDIA X, Python 3.")
    assert line.endswith(f"torch {module.torch.__version__}")
