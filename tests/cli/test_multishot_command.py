"""Tests of the command ``multishot``: the weights its levels start from, and resuming."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import QUIET

from synflow_pl import Classifier, Masks, load_weights
from synflow_pl.cli import multishot as command
from synflow_pl.cli.main import run
from synflow_pl.cli.multishot import multishot
from synflow_pl.networks import Conv

# With width 4, conv has 9 * 4 + 9 * 4 * 4 + 4 * 784 * 10 = 31,540 weights.
TOTAL = 31_540
SHORT = [
    "--model.network.width",
    "4",
    "--trainer.max_epochs",
    "3",
    "--trainer.accelerator",
    "cpu",
    *QUIET,
]
SHORT += [f"--trainer.limit_{part}_batches={count}" for part, count in (("train", 4), ("val", 1))]
LOTTERY = [
    "-c",
    "demo",
    "-c",
    "pruners/magnitude",
    "--pruning.density",
    "0.04",
    "--levels",
    "2",
    "--run",
    "ticket",
    *SHORT,
]
Fits = list[list[str]]


@pytest.fixture
def fits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Fits:
    """Run each level in this process, and list the command lines of the levels."""
    seen: Fits = []

    def fit(args: list[str], lock: Any) -> int:
        seen.append(args)
        run(args)
        return 0

    monkeypatch.setattr(command, "fit", fit)
    return seen


def level(number: int) -> Path:
    return Path(f"lightning_logs/ticket-level{number}of2")


def rows(number: int, column: str) -> list[dict[str, str]]:
    with open(level(number) / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row.get(column)]


def conv() -> Conv:
    return Conv(width=4)


class Starts:
    """Record the weights and the step with which each training starts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.steps: list[int] = []
        monkeypatch.setattr(Classifier, "on_train_start", lambda module: self.note(module))

    def note(self, module: Classifier) -> None:
        self.weights.append(
            {
                name: parameter.detach().clone()
                for name, parameter in module.network.named_parameters()
            }
        )
        self.steps.append(module.trainer.global_step)
        assert module.trainer.optimizers[0].state == {}  # no momentum


@pytest.mark.parametrize("rewind", [0, 1])
def test_each_level_starts_rewound_under_the_largest_trained_weights(
    rewind: int, fits: Fits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    starts = Starts(monkeypatch)
    # The learning rate drops after the first epoch, so that it identifies the epoch.
    milestones = ["--model.scheduler.milestones", "[1]"]
    multishot([*LOTTERY, "--rewind", str(rewind), *milestones])

    assert starts.steps == [0, 4 * rewind, 4 * rewind]
    rewound = dict(load_weights(conv(), level(0) / "rewind.ckpt").named_parameters())
    kept = []
    for number in range(3):
        masks = Masks.load(level(number) / "masks.safetensors")
        kept.append(masks.kept)
        trained = load_weights(conv(), level(number))
        assert all(not parameter[~mask].any() for parameter, mask in masks.parameters(trained))
        if number:
            before, ranked = (
                Masks.load(level(number - 1) / "masks.safetensors"),
                load_weights(conv(), level(number - 1)),
            )
            kept_weights = torch.cat([mask.flatten() for mask in masks.values()])
            magnitudes = torch.cat(
                [ranked.get_parameter(name).detach().abs().flatten() for name in masks]
            )
            assert magnitudes[kept_weights].min() >= magnitudes[~kept_weights].max()
            assert all(not (mask & ~before[name]).any() for name, mask in masks.items())
        for name, weight in starts.weights[number].items():
            start = rewound if number else starts.weights[0]
            assert torch.equal(
                weight, torch.where(masks[name], start[name], 0) if name in masks else start[name]
            )
        # Every level ends at the same epoch, regardless of where it started.
        assert [int(row["epoch"]) for row in rows(number, "val/loss")] == list(
            range(rewind if number else 0, 3)
        )
        assert [float(row["lr-SGD"]) for row in rows(number, "lr-SGD")] == pytest.approx(
            [0.05, 0.005, 0.005][rewind if number else 0 :]
        )
    # Densities 1, 0.2 and 0.04, rounded up to whole weights.
    assert kept == [TOTAL, -(-TOTAL // 5), 1262]
    table = capsys.readouterr().out.strip().splitlines()[-3:]
    assert [line.split()[:3] for line in table] == [
        [str(level(number)), f"{count:,}", f"{count / TOTAL:.6g}"]
        for number, count in enumerate(kept)
    ]


def test_a_second_call_skips_levels_that_have_ended_and_other_options_are_an_error(
    fits: Fits, capsys: pytest.CaptureFixture[str]
) -> None:
    multishot(LOTTERY)
    assert len(fits) == 3
    multishot(LOTTERY)
    assert len(fits) == 3
    assert sorted(path.name for path in Path("lightning_logs").iterdir()) == [
        level(number).name for number in range(3)
    ]
    for other, message in (
        (
            ["--model.optimizer.lr", "0.01"],
            "was begun with model.optimizer.init_args.lr=0.05, not 0.01; give the same options",
        ),
        (["--rewind", "1"], "was begun with trainer.callbacks="),
    ):
        with pytest.raises(SystemExit) as raised:
            multishot([*LOTTERY, *other])
        assert raised.value.code == 2
        assert message in capsys.readouterr().err
    assert len(fits) == 3


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_level_that_was_stopped_is_resumed(
    epoch: int, fits: Fits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(module: Classifier) -> None:
        if len(fits) == 2 and module.current_epoch == epoch:
            raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_epoch_start", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            multishot(LOTTERY)
    before = Masks.load(level(1) / "masks.safetensors")
    multishot(LOTTERY)
    assert [
        next(name for name in reversed(args) if "level" in name and "/" not in name)
        for args in fits
    ] == [level(number).name for number in (0, 1, 1, 2)]
    # A level that was stopped before its first checkpoint starts again; a later one is resumed.
    assert fits[2][-1] == str(level(1) if epoch else level(0) / "rewind.ckpt")
    assert [int(row["epoch"]) for row in rows(1, "val/loss")] == [0, 1, 2]
    after = Masks.load(level(1) / "masks.safetensors")
    assert all(torch.equal(after[name], mask) for name, mask in before.items())
    assert sorted(path.name for path in Path("lightning_logs").iterdir()) == [
        level(number).name for number in range(3)
    ]


def test_a_dense_level_that_was_stopped_before_its_rewind_point_was_written_starts_again(
    fits: Fits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(module: Classifier) -> None:
        if len(fits) == 1 and module.current_epoch == 2:
            raise RuntimeError("stopped")

    one = [*LOTTERY, "--levels", "1", "--rewind", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_epoch_start", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            multishot(one)
    dense = Path("lightning_logs/ticket-level0of1")
    (dense / "rewind.ckpt").unlink()
    multishot(one)
    assert "--ckpt_path" not in fits[1]
    assert (dense / "rewind.ckpt").is_file()


def test_a_folder_that_is_not_a_run_is_not_removed(
    fits: Fits, capsys: pytest.CaptureFixture[str]
) -> None:
    level(0).mkdir(parents=True)
    (level(0) / "thesis.tex").touch()
    with pytest.raises(SystemExit):
        multishot(LOTTERY)
    assert "is no run that was stopped: there is thesis.tex in it" in capsys.readouterr().err
    assert (level(0) / "thesis.tex").is_file()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (["--levels", "0"], "levels: 0 must be at least 1"),
        (
            ["--rewind", "3"],
            "rewind: 3 must be an epoch of the training, at least 0 and less than max_epochs=3",
        ),
        (["-c", "pruners/dense"], "multishot needs a pruner and --pruning.density"),
        (
            ["-c", "pruners/gradual"],
            "GradualMagnitude prunes while it trains, and multishot between trainings",
        ),
        (["-c", "pruners/rigl"], "RigL prunes while it trains, and multishot between trainings"),
        (["--pruning.at_epoch", "1"], "pruning.at_epoch cannot go with multishot"),
        (["-c", "sanity/shuffle"], "pruning.sanity cannot go with multishot"),
        (["--ckpt_path", "x"], "ckpt_path cannot go with multishot"),
        (["--pruning.densty", "1"], "there is no option pruning.densty"),
        (["-c", "nothing"], "no recipe 'nothing'"),
    ],
)
def test_an_option_that_levels_do_not_allow_is_an_error_before_any_training(
    other: list[str], message: str, fits: Fits, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        multishot([*LOTTERY, *other])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
    assert fits == []
    assert list(folder.iterdir()) == []


def test_levels_work_with_any_pruner_and_are_named_by_recipe_pruner_and_epoch(fits: Fits) -> None:
    multishot(["-c", "demo", "-c", "pruners/snip", "--levels", "1", "--rewind", "1", *SHORT])
    names = sorted(path.name for path in Path("lightning_logs").iterdir())
    assert names == [f"demo-snip-density0.05-seed0-rewind1-level{number}of1" for number in (0, 1)]
    options = yaml.safe_load((Path("lightning_logs") / names[1] / "config.yaml").read_text())
    # The configuration is complete, so that the level can be reproduced from it.
    assert options["pruning"]["score_from"] == f"lightning_logs/{names[0]}"
    assert options["ckpt_path"] == f"lightning_logs/{names[0]}/rewind.ckpt"
    assert (options["pruning"]["density"], options["run"]) == (0.05, names[1])


def test_multishot_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        multishot(["--help"])
    output = capsys.readouterr().out
    assert "usage: synflow_pl multishot --levels L [--rewind K] [OPTIONS OF fit]" in output


def wait_for(what: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_multishot_training_that_is_killed_is_resumed_by_the_same_command(
    how: signal.Signals, folder: Path
) -> None:
    package = str(Path(command.__file__).parents[2])
    command_line = [sys.executable, "-m", "synflow_pl", "multishot", *LOTTERY]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package}
    process = subprocess.Popen(
        command_line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: (level(1) / "config.yaml").is_file() or process.poll() is not None)
    process.send_signal(how)
    process.wait(60)

    def again() -> bool:
        done = subprocess.run(
            command_line, env=environment, capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            # A run that outlives the killed command still holds the lock on the levels.
            assert how == signal.SIGKILL, done.stderr
            assert "another process works on lightning_logs/ticket" in done.stderr, done.stderr
        return done.returncode == 0

    wait_for(again)
    assert sorted(path.name for path in Path("lightning_logs").iterdir()) == [
        level(number).name for number in range(3)
    ]
    for number in range(3):
        assert [int(row["epoch"]) for row in rows(number, "val/loss")] == [0, 1, 2]
    assert Masks.load(level(2) / "masks.safetensors").kept == 1262


SLOW_TO_END = """#!/bin/sh
trap 'sleep 0.7; echo whole > checkpoint; exit 143' INT TERM
echo $$ > started
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_the_command_waits_until_the_level_has_written_its_checkpoint(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "level"
    program.write_text(SLOW_TO_END)
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(program))

    def stop() -> None:
        while not Path("started").is_file() or not Path("started").read_text().strip():
            time.sleep(0.02)
        if number == signal.SIGINT:  # a terminal sends SIGINT to both processes
            os.kill(int(Path("started").read_text()), number)
        os.kill(os.getpid(), number)

    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(target=stop)
    thread.start()
    with open("lock", "w") as lock:
        assert command.fit([], lock) == 128 + number
    thread.join()
    assert Path("checkpoint").read_text() == "whole\n"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
