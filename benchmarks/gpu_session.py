"""Do in half an hour what a GPU is wanted for: the checks, then the accuracies of the table.

    python benchmarks/gpu_session.py [--minutes 28] [--out FOLDER]
    python benchmarks/gpu_session.py --device cpu --minutes 20 --sweep sweeps/digits   # a rehearsal

First runs benchmarks/gpu_check.py, then the cells of a sweep in their order until the time is over,
then reports on the finished runs. Everything is written below the folder (by default $OUT, else the
current one). Called again with the same folder, it skips checks that hold, and trainings resume
from their checkpoints. Data are read from $SYNFLOW_DATA. The exit status is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REHEARSAL = ("--device", "cpu", "--rounds", "3", "--backend", "aot_eager")
STOPPING = 60.0
"""Seconds that a sweep has for writing its checkpoints when the time is over."""


def checked(folder: Path) -> bool:
    """Return whether all checks of an earlier call hold."""
    try:
        checks = json.loads((folder / "gpu_check.json").read_text())["checks"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(checks) and all(check["holds"] for check in checks)


def environment() -> dict[str, str]:
    """Return the environment of this process, in which the package of this checkout is found."""
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *([path] if path else [])])}


def run_until(command: Sequence[str], deadline: float) -> int:
    """Run a command, interrupt it at a deadline of the monotonic clock, and return its status."""
    with subprocess.Popen(command, env=environment()) as process:
        try:
            return process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        try:
            return process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "."))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--minutes", type=float, default=28.0)
    parser.add_argument("--sweep", default="sweeps/table")
    options = parser.parse_args()
    if options.minutes <= 0:
        parser.error(f"--minutes: {options.minutes} must be greater than 0")
    deadline = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    if checked(options.out):
        print("The checks hold already.", flush=True)
    else:
        rehearsal = REHEARSAL if options.device == "cpu" else ()
        script = str(ROOT / "benchmarks" / "gpu_check.py")
        run_until(
            [sys.executable, script, "--out", str(options.out), *rehearsal], deadline - STOPPING
        )
    runs = options.out / "sweep"
    accelerator = "gpu" if options.device == "cuda" else "cpu"
    synflow_pl = [sys.executable, "-m", "synflow_pl"]
    run_until(
        [
            *synflow_pl,
            "sweep",
            "-c",
            options.sweep,
            "--folder",
            str(runs),
            "--trainer.accelerator",
            accelerator,
        ],
        deadline - STOPPING,
    )
    subprocess.run(
        [*synflow_pl, "report", str(runs), "--out", str(options.out / "report")],
        env=environment(),
        check=False,
    )
    return 0 if checked(options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
