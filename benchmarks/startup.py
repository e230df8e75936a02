"""Measure the start-up time of the command line.

    python -m benchmarks.startup [--runs 5]

Processes are timed in turn, in CPU seconds and wall-clock seconds: `--version` against a Python
that does nothing, `--help` against importing pytorch_lightning, and `fit` of the demo recipe up to
the end of its first step (one batch, density 0.05).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.timing import Seconds, environment, table

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "--version": ["-m", "synflow_pl", "--version"],
    "report --help": ["-m", "synflow_pl", "report", "--help"],
    "import pytorch_lightning": ["-c", "import pytorch_lightning"],
    "--help": ["-m", "synflow_pl", "--help"],
    "fit, first step of the demo": [
        "-m",
        "synflow_pl",
        "fit",
        "-c",
        "demo",
        "--trainer.fast_dev_run",
        "true",
    ],
}


def seconds(arguments: list[str], folder: str) -> Seconds:
    """Return the time of one process.

    Args:
        arguments: Arguments of the Python interpreter.
        folder: Working directory.
    """
    before, started = os.times(), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, check=True
    )
    wall, after = time.perf_counter() - started, os.times()
    return Seconds(
        wall,
        after.children_user + after.children_system - before.children_user - before.children_system,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    print(environment())
    taken: dict[str, list[Seconds]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(options.runs + 1):  # the first run, with cold caches, does not count
            for name, arguments in list(COMMANDS.items()):
                try:
                    spent = seconds(arguments, folder)
                except subprocess.CalledProcessError as error:
                    print(
                        f"{name}: left out, since it failed:"
                        f" {error.stderr.decode().strip().splitlines()[-1:]}"
                    )
                    del COMMANDS[name], taken[name]
                    continue
                if index:
                    taken[name].append(spent)
    light = {
        name: taken[name]
        for name in taken
        if name in ("python -c pass", "--version", "report --help")
    }
    table(light, "python -c pass", "light commands")
    for name in light.keys() - {"python -c pass"}:
        more = statistics.median(
            mine.cpu - plain.cpu
            for mine, plain in zip(taken[name], taken["python -c pass"], strict=True)
        )
        print(f"  {name}: {more:+.3f} s of the processor more than python -c pass")
    table(
        {name: runs for name, runs in taken.items() if name not in light},
        "import pytorch_lightning",
        "heavy commands",
    )


if __name__ == "__main__":
    main()
