"""Check that training which is killed and resumed repeatedly ends bit for bit as undisturbed.

``python -m tests.cli.crash [KILLS]`` prints a line for each kill. About a third of the restarts
have their temporary folder on another file system.
"""

from __future__ import annotations

import csv
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

import synflow_pl
from synflow_pl.data import Digits
from synflow_pl.training.checkpoints import KEY, read

EVERY, EPOCH, EPOCHS, ROUNDS = 20, 50, 16, 60
RUN = Path("lightning_logs/crash")
LAST = RUN / "checkpoints/last.ckpt"
SHM = Path("/dev/shm")


class Cropped(Digits):
    """Digits, cropped and flipped at random."""

    crop_padding = 2


class Dropped(nn.Sequential):
    """A small network with dropout and BatchNorm."""

    def __init__(self) -> None:
        convolution = [
            nn.Conv2d(1, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout2d(0.2),
        ]
        super().__init__(
            *convolution,
            nn.Flatten(),
            nn.Linear(8 * 13 * 13, 64),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(64, 10),
        )


class Steps(Callback):
    """Write the number of optimiser steps to the file ``steps`` after each step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        handle = os.open("steps", os.O_WRONLY | os.O_CREAT)
        # Overwritten in place, so that the file contains a number at any time.
        os.pwrite(handle, f"{trainer.global_step:8}".encode(), 0)
        os.close(handle)


def command(epochs: int, *more: str) -> list[str]:
    options = [
        "--model.network",
        "crash.Dropped",
        "--data",
        "crash.Cropped",
        "--data.batch_size",
        "16",
        "--pruning.density",
        "0.2",
    ]
    options += [
        "--data.val_size",
        str(5000 - 16 * EPOCH),
        "--trainer.limit_val_batches",
        "20",
        "--pruning.rounds",
        str(ROUNDS),
    ]
    options += [
        "--model.optimizer",
        "SGD",
        "--model.optimizer.lr",
        "0.05",
        "--model.optimizer.momentum",
        "0.9",
    ]
    options += [
        "--model.scheduler",
        "MultiStepLR",
        "--model.scheduler.milestones",
        f"[{epochs // 2}]",
    ]
    options += [
        "--trainer.callbacks+=crash.Steps",
        "--trainer.max_epochs",
        str(epochs),
        "--trainer.accelerator",
        "cpu",
        "--run",
        "crash",
    ]
    return [
        "fit",
        *options,
        "--checkpoint_every_n_steps",
        str(EVERY),
        "--trainer.enable_progress_bar",
        "false",
        *more,
    ]


def start(folder: Path, epochs: int, temporary: Path | None, *more: str) -> subprocess.Popen[bytes]:
    paths = [str(Path(synflow_pl.__file__).parents[1]), str(Path(__file__).parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    environment |= {"TMPDIR": str(temporary)} if temporary is not None else {}
    with open(folder / "output", "wb") as output:
        started = [sys.executable, "-m", "synflow_pl", *command(epochs, *more)]
        return subprocess.Popen(
            started, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )


def rows(folder: Path, column: str) -> list[dict[str, str]]:
    try:
        with open(folder / RUN / "metrics.csv", newline="") as file:
            return [row for row in csv.DictReader(file) if row.get(column)]
    except FileNotFoundError:
        return []


def saved_step(folder: Path) -> int | None:
    return int(read(folder / LAST)["global_step"]) if (folder / LAST).is_file() else None


def taken_step(folder: Path) -> int:
    return int((folder / "steps").read_text() or 0) if (folder / "steps").is_file() else 0


@dataclass
class Kill:
    """Record of one kill.

    Attributes:
        kind: Event during which the process was killed.
        at: Number of steps taken.
        resumed_from: Step of the checkpoint that the process had resumed from.
        saved: Step of the newest checkpoint after the kill.
        writing: Whether the kill left a partly written checkpoint.
        temporary: Temporary folder of the process, if it was on another file system.
    """

    kind: str
    at: int
    resumed_from: int | None
    saved: int | None
    writing: bool
    temporary: Path | None


def wait(process: subprocess.Popen[bytes], folder: Path, until: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not until():
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError((folder / "output").read_text())


def writes(folder: Path) -> bool:
    try:
        return any(entry.name.endswith(".unfinished") for entry in os.scandir(folder / LAST.parent))
    except FileNotFoundError:
        return False


def wait_to_kill(
    kind: str, process: subprocess.Popen[bytes], folder: Path, chance: random.Random
) -> None:
    """Wait until the process is in the event ``kind`` in which it is to be killed."""
    if kind == "pruning":
        rounds = chance.randrange(1, ROUNDS - 10)
        wait(process, folder, lambda: len(rows(folder, "pruning/density")) >= rounds)
        return
    stamp = (folder / LAST).stat().st_mtime_ns if (folder / LAST).is_file() else 0
    if kind == "writing":
        (folder / "steps").unlink(missing_ok=True)
        wait(process, folder, lambda: writes(folder) and (folder / "steps").is_file())
    elif kind == "epoch":
        wait(
            process,
            folder,
            lambda: (folder / LAST).is_file() and (folder / LAST).stat().st_mtime_ns != stamp,
        )
        time.sleep(chance.uniform(0, 0.2))
    else:  # around the end of an epoch
        before = len(rows(folder, "val/loss"))
        wait(process, folder, lambda: len(rows(folder, "val/loss")) > before)
        time.sleep(chance.choice([0, 0.002, 0.02]))


def resumed_step(folder: Path) -> int | None:
    match = re.search(r"Resuming from step (\d+)", (folder / "output").read_text())
    return int(match[1]) if match else None


def crash(
    folder: Path,
    kinds: list[str],
    epochs: int,
    say: Callable[[str], None] = lambda _: None,
    more: Sequence[str] = (),
) -> list[Kill]:
    """Train with one kill for each of ``kinds``, then to the end, and return the kills.

    ``more`` are further options of the command.
    """
    chance, kills = random.Random(0), []
    with tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else None) as elsewhere:
        for number, kind in enumerate([*kinds, "end"]):
            newest = saved_step(folder)
            temporary = Path(elsewhere) if number % 3 == 1 else None
            process = start(folder, epochs, temporary, *more, "--ckpt_path", "last")
            try:
                if kind == "end":
                    assert process.wait(300) == 0, (folder / "output").read_text()
                else:
                    wait_to_kill(kind, process, folder, chance)
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
            resumed_from = resumed_step(folder)
            # It resumes from the newest complete checkpoint; only without one does it start again.
            assert resumed_from == newest, (resumed_from, newest)
            assert [path.name for path in (folder / RUN.parent).iterdir()] == [RUN.name]
            if kind != "end":
                kills.append(
                    Kill(
                        kind,
                        taken_step(folder),
                        resumed_from,
                        saved_step(folder),
                        writes(folder),
                        temporary,
                    )
                )
                say(str(kills[-1]))
    return kills


def check(folder: Path, whole: Path, kills: list[Kill], densities: int = ROUNDS) -> None:
    """Check that a kill loses only steps since the last checkpoint, and the results are equal."""
    for kill in kills:
        assert kill.at - (kill.saved or 0) <= EVERY, kill
    ended, expected = (read(place / LAST) for place in (folder, whole))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", KEY):
        assert same(ended[part], expected[part]), part
    for column in ("val/loss", "val/accuracy"):
        assert [(row["epoch"], row[column]) for row in rows(folder, column)] == [
            (r["epoch"], r[column]) for r in rows(whole, column)
        ]
    assert len(rows(folder, "pruning/density")) == densities
    assert not writes(folder)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def undisturbed(folder: Path, epochs: int, *more: str) -> None:
    process = start(folder, epochs, None, *more)
    assert process.wait(600) == 0, (folder / "output").read_text()


def main(kills: int) -> None:
    parts = ["pruning"] * (kills // 5) + [
        "writing",
        "epoch",
        "writing",
        "epoch",
        "boundary",
    ] * kills
    with tempfile.TemporaryDirectory() as place:
        folder, whole = Path(place) / "killed", Path(place) / "whole"
        for each in (folder, whole):
            each.mkdir()
        undisturbed(whole, EPOCHS)
        done = crash(folder, parts[:kills], EPOCHS, print)
        check(folder, whole, done)
    writing = sum(kill.writing for kill in done)
    lost = max(kill.at - (kill.saved or 0) for kill in done)
    kinds = ", ".join(
        f"{sum(kill.kind == kind for kill in done)} {kind}"
        for kind in dict.fromkeys(kill.kind for kill in done)
    )
    print(
        f"{len(done)} kills ({kinds}; {writing} left a half-written checkpoint), at most {lost} "
        "steps lost; the same to the last bit"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
