"""Tests with jobs of a real SLURM on this machine; skipped if it is not available."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from synflow_pl.training.checkpoints import read

START = Path(__file__).resolve().parents[3] / "shared/slurm/start.sh"
SHORT = [
    "--model.network.width",
    "2",
    "--trainer.max_epochs",
    "12",
    "--trainer.accelerator",
    "cpu",
    "--trainer.limit_val_batches",
    "1",
]
SHORT += [
    "--trainer.enable_progress_bar",
    "false",
    "--pruning.rounds",
    "3",
    "--checkpoint_every_n_steps",
    "20",
]


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def is_up() -> bool:
    return (
        shutil.which("sinfo") is not None
        and subprocess.run(["scontrol", "ping"], capture_output=True, check=False).returncode == 0
    )


@pytest.fixture(scope="module")
def _slurm() -> Iterator[None]:
    """Use the running SLURM, or start one for these tests and stop it after them."""
    if is_up():
        yield
        return
    if not START.is_file() or os.geteuid() != 0 or shutil.which("slurmctld") is None:
        pytest.skip(
            "no SLURM runs here, and none can be started (root, Debian's slurm-wlm and "
            "../shared/slurm/start.sh are needed)"
        )
    subprocess.run(["bash", str(START)], timeout=200, check=True, stdout=subprocess.DEVNULL)
    yield
    subprocess.run(["bash", str(START), "stop"], timeout=60, check=True)


def wait(what: Callable[[], object], folder: Path, seconds: float = 500) -> None:
    end = time.monotonic() + seconds
    while not what():
        outputs = "\n".join(path.read_text() for path in folder.glob("*.out"))
        assert time.monotonic() < end, outputs
        time.sleep(0.2)


def queued(job: str) -> str:
    """Return the state of a job: "R" if it runs, "PD" if it waits, "" if it has ended."""
    done = subprocess.run(
        ["squeue", "-h", "-j", job, "-o", "%t"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def script(folder: Path, tasks: int, *options: str) -> Path:
    """Write the script of a job that trains the demo's recipe for a short time."""
    path = folder / "job.sh"
    command = " ".join(
        ["srun", sys.executable, "-m", "synflow_pl", "fit", "-c", "demo", *SHORT, *options]
    )
    options_of_job = (
        "nodes=1",
        f"ntasks-per-node={tasks}",
        "overcommit",
        "requeue",
        "open-mode=append",
        "output=%j.out",
    )
    head = "".join(f"#SBATCH --{option}\n" for option in options_of_job)
    path.write_text(
        f"#!/bin/bash\n{head}export OMP_NUM_THREADS=1 "
        f"PYTHONPATH={Path(__file__).parents[2]}\n{command}\n"
    )
    return path


def submit(path: Path) -> str:
    return re.findall(r"\d+", slurm("sbatch", f"--chdir={path.parent}", str(path)))[0]


@pytest.mark.slow
@pytest.mark.usefixtures("_slurm")
def test_two_requeued_jobs_in_one_folder_each_resume_their_own_run(
    tmp_path: Path,
) -> None:
    # Both jobs have the same command; one is stopped after SLURM's warning and one without it.
    # Lightning's checkpoint of another job is in the folder.
    (tmp_path / "hpc_ckpt_1.ckpt").write_text("a stranger's")
    jobs = [submit(script(tmp_path, 1)) for _ in range(2)]
    try:
        runs: dict[str, Path] = {}

        def begun() -> bool:
            owners = {
                path.read_text(): path.parent for path in tmp_path.glob("lightning_logs/*/.owner")
            }
            runs.update(
                {
                    job: run
                    for job, run in owners.items()
                    if (run / "checkpoints/last.ckpt").is_file()
                }
            )
            return runs.keys() == set(jobs)

        wait(begun, tmp_path)
        slurm("scancel", "--signal=USR1", jobs[0])
        slurm("scontrol", "requeue", jobs[1])
        for job in jobs:
            wait(lambda job=job: queued(job) == "PD", tmp_path)
            slurm("scontrol", "update", f"JobId={job}", "StartTime=now")
        for job in jobs:
            wait(lambda job=job: not queued(job), tmp_path)
    finally:
        for job in jobs:
            subprocess.run(["scancel", job], check=False)
    output = {job: (tmp_path / f"{job}.out").read_text() for job in jobs}
    assert "SLURM's time is nearly up" in output[jobs[0]]
    for job in jobs:
        resumed = re.findall(r"Resuming from step (\d+): (\S+)", output[job])
        assert [path for _, path in resumed] == [
            str(runs[job].relative_to(tmp_path) / "checkpoints/last.ckpt")
        ], output[job]
        assert int(resumed[0][0]) > 0
        assert "`max_epochs=12` reached" in output[job]
    assert len(list((tmp_path / "lightning_logs").iterdir())) == 2
    one, other = (read(runs[job] / "checkpoints/last.ckpt")["state_dict"] for job in jobs)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.slow
@pytest.mark.usefixtures("_slurm")
@pytest.mark.parametrize("overlay", ["ddp", "fsdp"])
def test_a_job_of_two_tasks_is_stopped_and_resumed_on_both(tmp_path: Path, overlay: str) -> None:
    two = ["-c", f"trainer/{overlay}", "--trainer.devices", "2"]
    job = submit(script(tmp_path, 2, *two))
    try:
        wait(lambda: list(tmp_path.glob("lightning_logs/*/checkpoints/last.ckpt")), tmp_path)
        slurm("scancel", "--signal=USR1", job)
        wait(lambda: queued(job) == "PD", tmp_path)
        slurm("scontrol", "update", f"JobId={job}", "StartTime=now")
        wait(lambda: not queued(job), tmp_path)
    finally:
        subprocess.run(["scancel", job], check=False)
    output = (tmp_path / f"{job}.out").read_text()
    assert output.count("SLURM's time is nearly up") == 1, output
    assert len(re.findall(r"Resuming from step [1-9]", output)) == 1, output
    assert output.count("`max_epochs=12` reached") == 1, output
    (run,) = (tmp_path / "lightning_logs").iterdir()
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    job = submit(script(undisturbed, 2, *two))
    wait(lambda: not queued(job), undisturbed)
    (other,) = (undisturbed / "lightning_logs").iterdir()
    one, same = (read(folder / "checkpoints/last.ckpt")["state_dict"] for folder in (run, other))
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
