"""Store the small files of runs, from which tables and figures can be made again.

    python -m benchmarks.evidence sweeps/quick_cifar10 --into docs/evidence/quick_cifar10

stores the configuration, the metrics, the diagnosis, the machines, the time and the masks (those
of at most 200 kB when compressed) of each finished run, without folders of this machine.
``synflow_pl report`` and :mod:`benchmarks.table` read what is stored.
"""

from __future__ import annotations

import argparse
import lzma
import shutil
from pathlib import Path

import yaml

from synflow_pl.io import atomic_write
from synflow_pl.runs import CONFIG, MACHINES
from synflow_pl.runs.run_search import find_runs
from synflow_pl.runs.training_record import RECORD, read_record

_MASKS = "masks.safetensors"
_LARGEST_MASKS = 200_000


def store(run: Path, folder: Path) -> None:
    """Store the small files of a run.

    Args:
        run: Folder of the run.
        folder: Folder that gets a folder of the run's name.
    """
    target = folder / run.name
    if run.resolve() == target.resolve():
        return
    config = yaml.safe_load((run / CONFIG).read_text())
    config["trainer"]["default_root_dir"] = config["ckpt_path"] = None
    for name in ("data_dir", "predict_dir"):
        if config["data"]["init_args"].get(name):
            config["data"]["init_args"][name] = None
    with atomic_write(target / CONFIG) as file:
        file.write(yaml.safe_dump(config, sort_keys=False).encode())
    for name in ("metrics.csv", "diagnosis.json", MACHINES, RECORD):
        if (run / name).is_file():
            shutil.copyfile(run / name, target / name)
    masks = run / _MASKS
    if masks.is_file() and len(compressed := lzma.compress(masks.read_bytes())) <= _LARGEST_MASKS:
        with atomic_write(target / f"{_MASKS}.xz") as file:
            file.write(compressed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="runs, or folders of runs"
    )
    parser.add_argument("--into", required=True, type=Path, help="folder to store the runs in")
    options = parser.parse_args()
    runs = find_runs(options.runs)
    finished = [run for run in runs if (record := read_record(run)) and record.ended]
    for run in finished:
        store(run, options.into)
    print(f"{len(finished)} of {len(runs)} runs stored in {options.into}: those that are finished")


if __name__ == "__main__":
    main()
