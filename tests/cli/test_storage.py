"""Tests of storage errors: a full disk, a read-only folder, and a file in place of a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from synflow_pl.__main__ import main

FIT = [
    "fit",
    "-c",
    "demo",
    "--pruning.rounds",
    "2",
    "--trainer.max_epochs",
    "1",
    "--trainer.limit_train_batches",
    "2",
]
FIT += ["--trainer.limit_val_batches", "1", "--trainer.enable_progress_bar", "false"]


def on_a_small_disk(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a folder that is a file system of 2.5 MB."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here (unshare -rm)")
    mount = f"mount -t tmpfs -o size=2500k none {folder} || exit 99; cd {folder}; {script}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PY": sys.executable}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 99:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    return done


WRITES = """
import os
from pathlib import Path
import torch
from matplotlib.figure import Figure
from synflow_pl import Masks
from synflow_pl.diagnosis.files import write_csv, write_json
from synflow_pl.figures.style import save
from synflow_pl.runs import RunCSV
from synflow_pl.runs.training_record import Training, write_record
from synflow_pl.training import DurableCheckpointIO

def checkpoint(size):
    DurableCheckpointIO().save_checkpoint({"weights": torch.zeros(size)}, "last.ckpt")


def masks():
    Masks({"w": torch.ones(3_000_000, dtype=torch.bool)}).save("masks.safetensors")


def metrics():
    logger.experiment.log_metrics({"value": "x" * 4_000_000}, 1)
    logger.save()


checkpoint(1000)
whole = Path("last.ckpt").read_bytes()
rows = [{"value": "x" * 100000}] * 40
writes = {
    "last.ckpt": lambda: checkpoint(1_000_000),
    "masks.safetensors": masks,
    "diagnosis.csv": lambda: write_csv("diagnosis.csv", rows),
    "diagnosis.json": lambda: write_json("diagnosis.json", rows),
    "metrics.csv": metrics,
}
logger = RunCSV(Path("."))
small = {
    "training.json": lambda: write_record(Path("."), Training(True)),
    "picture.png": lambda: save(Figure(), "picture"),
}


def fails(name, write):
    try:
        write()
    except OSError as error:
        message = str(error)
        assert f"{name}' could not be written (No space left on device)" in message, (name, message)
        assert "make room" in message
    else:
        raise AssertionError(name)


for name, write in writes.items():
    fails(name, write)
    Path("metrics.csv").unlink(missing_ok=True)
with open("filler", "wb", buffering=0) as filler:
    try:
        while filler.write(bytes(4096)):
            pass
    except OSError:
        pass
for name, write in small.items():
    fails(name, write)
assert Path("last.ckpt").read_bytes() == whole
assert sorted(os.listdir()) == ["filler", "last.ckpt"], os.listdir()
print("right")
"""


def test_every_write_to_a_full_disk_is_one_sentence_and_keeps_the_existing_file(
    tmp_path: Path,
) -> None:
    script = tmp_path.parent / f"{tmp_path.name}.py"
    script.write_text(WRITES)
    done = on_a_small_disk(f'"$PY" {script}', tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "right"), done.stderr


def test_a_training_on_a_full_disk_ends_with_one_sentence(tmp_path: Path) -> None:
    done = on_a_small_disk(
        f'"$PY" -m synflow_pl {" ".join(FIT)}; status=$?; '
        'find . -name "*.ckpt" -size 0; exit $status',
        tmp_path,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    output = done.stderr.strip().splitlines()[-1]
    assert output.startswith("synflow_pl: error: ")
    assert "No space left on device" in output
    assert ".ckpt\n" not in done.stdout


@pytest.mark.parametrize(
    "command", [FIT, ["prune", "-c", "demo"], ["multishot", "--levels", "1", "-c", "demo"]]
)
def test_the_error_for_a_file_called_lightning_logs_names_it(
    command: list[str],
    folder: Path,
    touched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("lightning_logs").touch()
    monkeypatch.setattr(sys, "argv", ["synflow_pl", *command])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 1
    output = capsys.readouterr().err.strip().splitlines()
    assert output[-1].startswith("synflow_pl: error: ")
    assert "'lightning_logs' cannot be made: 'lightning_logs' is a file; move it away" in output[-1]
    assert touched == []


@pytest.mark.parametrize("typed", [["fti", "-c", "demo"], ["Fit"], ["trian"], []])
def test_a_misspelt_subcommand_is_an_error_that_lists_all_subcommands(
    typed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["synflow_pl", *typed])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 2
    output = capsys.readouterr().err
    assert (
        "compact, demo, experiment, export, fit, multishot, predict, prune, report, sweep, test, "
        "validate" in output
    )
    assert len(output.splitlines()) == 1


READ_ONLY = {
    "test --ckpt_path ro/a": "'ro/a/metrics.csv' could not be",
    "export --ckpt_path ro/a": (
        "--output: the folder 'ro/a/export' cannot be made: Read-only file system"
    ),
    "report ro --out ro": (
        "--out: nothing can be written into 'ro': Read-only file system; choose a folder"
    ),
    "fit -c demo --trainer.default_root_dir ro": (
        "choose a folder that can be written (--trainer.default_root_dir)"
    ),
}


@pytest.mark.slow
def test_a_read_only_run_is_an_error_of_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    lines = [f'"$PY" -m synflow_pl {" ".join(FIT)} --model.network.width 1 --run a >log 2>&1']
    lines += [
        "mkdir ro; mount -t tmpfs -o size=20m none ro; cp -r lightning_logs/a ro/; mount -o "
        "remount,ro ro"
    ]
    lines += [f'"$PY" -m synflow_pl {command} 2>&1 | tail -n 1' for command in READ_ONLY]
    done = on_a_small_disk("; ".join(lines), tmp_path)
    output = done.stdout.splitlines()
    assert len(output) == len(READ_ONLY), done.stderr
    for line, expected in zip(output, READ_ONLY.values(), strict=True):
        assert line.startswith("synflow_pl: error: ")
        assert expected in line
        assert "Errno" not in line
