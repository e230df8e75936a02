"""Tests of sweeps on a real SLURM: results equal local ones, and cancelled jobs are retried."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synflow_pl.cli.recipes import overlays
from synflow_pl.runs.report_writer import report
from synflow_pl.runs.sweep_grid import Sweep, accuracy

pytestmark = pytest.mark.slow

GRID = """# A sweep for tests.
recipes: [demo]
pruners: [magnitude, random]
densities: [0.5]
options: {trainer.max_epochs: 2, trainer.limit_train_batches: 20, trainer.accelerator: cpu}
"""
TASKS = Sweep(["demo"], ["magnitude", "random"], [0.5]).tasks()


@pytest.fixture
def cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory with a sweep's file; skip if no node of SLURM is up."""
    pytest.importorskip("submitit")
    up = (
        shutil.which("sinfo")
        and subprocess.run(
            ["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False
        ).stdout
    )
    if not up or not {"idle", "mixed", "allocated"} & set(up.split()):
        pytest.skip("no SLURM is up")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=":")
    (folder / "grid.yaml").write_text(GRID)
    return folder


def sweep(*args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "synflow_pl", "sweep", "-c", "grid.yaml", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


SLURM = ["--launcher", "slurm", "--slurm.time", "10", "--slurm.width", "2"]


def test_a_sweep_on_slurm_has_the_same_results_and_table_as_a_local_one(cluster: Path) -> None:
    for args in (["--folder", "here"], ["--folder", "there", *SLURM]):
        output, _ = sweep(*args).communicate(timeout=900)
        assert "2/2" in output, output
    assert [accuracy(cluster / "there", task) for task in TASKS] == [
        accuracy(cluster / "here", task) for task in TASKS
    ]
    assert None not in [accuracy(cluster / "there", task) for task in TASKS]
    tables = []
    for folder in ("here", "there"):
        summary = report(
            [Path(folder)], Path("report") / folder, overlays(), reference="random", paper=False
        )
        assert summary.left_out == {}
        tables.append((Path("report") / folder / "table.csv").read_text())
    assert tables[0] == tables[1]


def test_a_job_that_slurm_cancels_is_reported_and_retried(cluster: Path) -> None:
    process = sweep("--folder", "there", "--trainer.max_epochs", "6", *SLURM)
    name = TASKS[0].name
    while not list((cluster / "there" / "lightning_logs" / name).glob("checkpoints/*.ckpt")):
        assert process.poll() is None
        time.sleep(0.2)
    jobs = subprocess.run(
        ["squeue", "--me", "-h", "-r", "-o", "%F_%K"], capture_output=True, text=True, check=True
    ).stdout.split()
    subprocess.run(["scancel", next(job for job in jobs if job.endswith("_0"))], check=True)
    output, _ = process.communicate(timeout=900)
    assert f"{name} failed: its job ended without a result" in output
    assert "Trying 1 again that failed." in output
    assert process.returncode == 0
    assert accuracy(cluster / "there", TASKS[0]) is not None
