"""The GPU check, rehearsed on the CPU, and run on a GPU if there is one."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check

ROOT = Path(__file__).parents[1]
SCRIPT = [sys.executable, str(ROOT / "benchmarks/gpu_check.py")]


@pytest.fixture(autouse=True)
def _restore_lightning_log_level() -> Iterator[None]:
    """Restore the log level of Lightning, which the script changes in its process."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    yield
    logger.setLevel(level)


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "gpu_check.json").read_text())
    assert (folder / "gpu_check.md").read_text().startswith("# GPU check")
    return found


def test_a_failing_check_is_reported_and_the_other_checks_still_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(options: Any) -> Any:
        """It works."""
        raise OSError("no such luck")

    def unequal(options: Any) -> Any:
        """Two is three."""
        return gpu_check.held(2 == 3, {"two": 2})

    def equal(options: Any) -> Any:
        """Two is two."""
        return gpu_check.held(2 == 2, {"two": 2})

    monkeypatch.setattr(gpu_check, "CHECKS", (broken, unequal, equal))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--device", "cpu", "--out", str(tmp_path)])
    assert gpu_check.main() == 1
    results = report(tmp_path)
    assert [row["holds"] for row in results["checks"]] == [False, False, True]
    assert "no such luck" in results["checks"][0]["facts"]["error"]
    assert results["checks"][1]["facts"] == {"two": 2}
    assert "not run on a GPU" in results["machine"]["gpu"]


def test_the_error_without_a_gpu_says_how_to_rehearse(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = subprocess.run(
        [*SCRIPT, "--out", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "torch finds no GPU here; --device cpu rehearses" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_gpu_check_can_be_rehearsed_on_a_cpu(tmp_path: Path) -> None:
    cheap = ["masks_by_precision", "compiled", "channels_last", "one_device_ddp", "digits"]
    words = [
        "--device",
        "cpu",
        # One round disconnects ResNet-20, whose outputs would all be zero.
        "--rounds",
        "3",
        "--backend",
        "aot_eager",
        "--out",
        str(tmp_path),
        "--only",
        *cheap,
    ]
    done = subprocess.run([*SCRIPT, *words], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "gpu_check.md").read_text()
    assert [row["check"] for row in report(tmp_path)["checks"]] == cheap


@pytest.mark.gpu
def test_every_check_holds_on_a_gpu(tmp_path: Path) -> None:
    done = subprocess.run([*SCRIPT, "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "gpu_check.md").read_text()
