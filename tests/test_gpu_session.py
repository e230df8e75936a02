"""Half an hour on a GPU, rehearsed on the CPU: checks, trainings until the time is over, report."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu_session import checked, run_until

ROOT = Path(__file__).parents[1]


def test_checks_are_repeated_unless_all_of_them_held(tmp_path: Path) -> None:
    assert not checked(tmp_path)
    for holds, expected in (([True, True], True), ([True, False], False), ([], False)):
        checks = [{"holds": value} for value in holds]
        (tmp_path / "gpu_check.json").write_text(json.dumps({"checks": checks}))
        assert checked(tmp_path) is expected
    (tmp_path / "gpu_check.json").write_text("{")
    assert not checked(tmp_path)


def test_a_command_is_interrupted_when_the_time_is_over(tmp_path: Path) -> None:
    script = (
        "import time\n"
        "try:\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        f"    open({str(tmp_path / 'saved')!r}, 'w').close()\n"
        "    raise SystemExit(3)\n"
    )
    assert run_until([sys.executable, "-c", script], time.monotonic() + 5) == 3
    assert (tmp_path / "saved").exists()


@pytest.mark.slow
def test_a_rehearsal_trains_and_reports(tmp_path: Path) -> None:
    (tmp_path / "gpu_check.json").write_text(json.dumps({"checks": [{"holds": True}]}))
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(
        "# Tiny.\nrecipes: [demo]\npruners: [synflow]\ndensities: [0.1]\n"
        "options: {trainer.max_epochs: 1, trainer.limit_train_batches: 4}\n"
    )
    command = [sys.executable, str(ROOT / "benchmarks/gpu_session.py"), "--device", "cpu"]
    command += ["--minutes", "4", "--out", str(tmp_path), "--sweep", str(sweep)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=True
    )
    assert "The checks hold already." in done.stdout
    assert "[1/1] tiny" in done.stdout or "[1/1] demo-synflow" in done.stdout
    assert "synflow" in (tmp_path / "report" / "table.csv").read_text()
