"""Tests that two processes prune and train as one does, and end by themselves or by a signal."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from synflow_pl import Masks
from synflow_pl.cli import main
from synflow_pl.cli.recipes import recipe_folder
from synflow_pl.cli.run_opening import CLAIMED
from synflow_pl.training.checkpoints import read
from tests.processes import Command, run_command

pytestmark = pytest.mark.usefixtures("one_thread")

OVERLAYS = sorted(path.stem for path in (recipe_folder() / "pruners").glob("*.yaml"))
SHORT = {
    "enable_progress_bar": "false",
    "enable_model_summary": "false",
    "accelerator": "cpu",
    "max_epochs": "3",
    "limit_train_batches": "4",
    "limit_val_batches": "4",
}
# The network has no BatchNorm, whose statistics would differ between one rank and two.
FIT = [
    "fit",
    "-c",
    "demo",
    *(word for name, value in SHORT.items() for word in (f"--trainer.{name}", value)),
]


def options(overlay: str) -> list[str]:
    """Return options for a short pruning with an overlay, without an error for layer collapse."""
    if overlay == "dense":
        return ["-c", "pruners/dense"]
    moving = ["--pruning.pruner.delta_t", "2"] if overlay in ("rigl", "set") else []
    return [
        "-c",
        f"pruners/{overlay}",
        *moving,
        "--pruning.rounds",
        "3",
        "--pruning.density",
        "0.3",
        "--pruning.on_collapse",
        "warn",
    ]


def outcome(run: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return a run's masks, and its losses and accuracies after each epoch."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ("train/loss", "val/loss", "train/accuracy", "val/accuracy", "train/accuracy_top5")
    curves = [[float(row[name]) for row in rows if row.get(name)] for name in names]
    masks = run / "masks.safetensors"
    return dict(Masks.load(masks)) if masks.exists() else {}, torch.tensor(curves)


def compare(two: Path, one: Path, *, trained: bool = False) -> None:
    (left, curves), (right, expected) = outcome(two), outcome(one)
    assert left.keys() == right.keys()
    differing = sum(int((left[name] ^ right[name]).sum()) for name in left)
    # Weights that are trained before they are ranked differ in their last bits, so two almost
    # equal ones may be ranked differently.
    assert differing <= (2 if trained else 0)
    assert expected.shape == (5, 3)
    # Two processes sum floats in another order; accuracies of 256 images may differ by one image
    # near the decision boundary.
    torch.testing.assert_close(curves[:2], expected[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(curves[2:], expected[2:], rtol=0, atol=1.5 / 256)


@pytest.mark.parametrize(
    "overlay",
    [
        name if name in ("synflow", "snip") else pytest.param(name, marks=pytest.mark.slow)
        for name in OVERLAYS
    ],
)
def test_two_processes_choose_the_masks_of_one_and_follow_its_loss_curve(
    folder: Path, overlay: str, monkeypatch: Any
) -> None:
    for name, devices in (
        ("two", ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]),
        ("one", []),
    ):
        monkeypatch.delenv(CLAIMED, raising=False)
        main.run([*FIT, *options(overlay), *devices, "--run", name])
    compare(
        folder / "lightning_logs/two",
        folder / "lightning_logs/one",
        trained=overlay in ("gradual", "rigl", "set"),
    )
    assert (folder / "lightning_logs/one/masks.safetensors").exists() == (overlay != "dense")


# -- other ways to start two processes

ROOT = Path(__file__).parents[2]


def start(folder: Path, *command: str, **extra: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **extra}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait(*started: subprocess.Popen[str]) -> None:
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(
        output[-3000:] for output in outputs
    )


SYNFLOW_PL = [sys.executable, "-m", "synflow_pl"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def fit_command(strategy: str, devices: int) -> list[str]:
    return [
        *FIT,
        *options("synflow"),
        "--trainer.strategy",
        strategy,
        "--trainer.devices",
        str(devices),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "ddp_spawn", "torchrun"])
def test_processes_of_each_launcher_choose_the_masks_of_one(
    folder: Path, how: str, port: str
) -> None:
    wait(start(folder, *SYNFLOW_PL, *fit_command("auto", 1), "--run", "one"))
    # torchrun has an option --run itself, so the name is given in a file.
    (folder / "named.yaml").write_text("run: two\n")
    launcher = (
        [*TORCHRUN, "--nproc_per_node", "2", "--master_port", port, "-m", "synflow_pl"]
        if how == "torchrun"
        else SYNFLOW_PL
    )
    strategy = "ddp" if how == "torchrun" else how
    wait(start(folder, *launcher, *fit_command(strategy, 2), "-c", "named.yaml"))
    compare(folder / "lightning_logs/two", folder / "lightning_logs/one")
    assert sorted(path.name for path in (folder / "lightning_logs").iterdir()) == ["one", "two"]
    wait(
        start(
            folder,
            *SYNFLOW_PL,
            "test",
            "--ckpt_path",
            "lightning_logs/two",
            "--trainer.strategy",
            "auto",
            "--trainer.devices",
            "1",
        )
    )


def on_nodes(nodes: list[tuple[str, str]], port: str, processes: int) -> Iterator[list[str]]:
    """Yield the start of each node's command, which runs the package under torchrun."""
    for rank, (name, interface) in enumerate(nodes):
        yield [
            *("ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={interface}"),
            *(*TORCHRUN, "--nnodes", "2", "--node_rank", str(rank)),
            *("--master_addr", "10.77.0.1", "--master_port", port),
            *("--nproc_per_node", str(processes), "-m", "synflow_pl"),
        ]


@pytest.mark.slow
def test_processes_on_two_nodes_choose_the_masks_of_one(
    folder: Path, nodes: list[tuple[str, str]], port: str
) -> None:
    wait(start(folder, *SYNFLOW_PL, *fit_command("auto", 1), "--run", "one"))
    (folder / "named.yaml").write_text("run: two\n")
    words = [*fit_command("ddp", 1), "--trainer.num_nodes", "2", "-c", "named.yaml"]
    started = [start(folder, *node, *words) for node in on_nodes(nodes, port, 1)]
    wait(*started)
    compare(folder / "lightning_logs/two", folder / "lightning_logs/one")


# -- with the default progress bar, summary and loggers

TWO = [
    *SYNFLOW_PL,
    "fit",
    "-c",
    "demo",
    "--trainer.strategy",
    "ddp",
    "--trainer.devices",
    "2",
    "--trainer.accelerator",
    "cpu",
]
FEW = [
    "--trainer.limit_train_batches",
    "4",
    "--trainer.limit_val_batches",
    "2",
    "--trainer.max_epochs",
    "3",
    "--pruning.rounds",
    "2",
]
PLACES = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
}
BARS = {
    "default": [],
    "tqdm": ["--trainer.callbacks+=TQDMProgressBar"],
    "rich": ["--trainer.callbacks+=RichProgressBar"],
}
VALIDATIONS = {
    "validated": [],
    "not validated": ["--trainer.limit_val_batches", "0"],
    "validated within": ["--trainer.val_check_interval", "2"],
    "validated seldom": ["--trainer.check_val_every_n_epoch", "2"],
    "tested too": ["--data.test_each_epoch", "true"],
    "best": ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor", "val/loss"],
    "stopped early": [
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor",
        "val/loss",
    ],
    "averaged": ["--trainer.callbacks+=EMAWeightAveraging"],
    "gradual": ["-c", "pruners/gradual", "--pruning.density", "0.3"],
    "rigl": ["-c", "pruners/rigl", "--pruning.density", "0.3", "--pruning.pruner.delta_t", "2"],
    "set": ["-c", "pruners/set", "--pruning.density", "0.3", "--pruning.pruner.delta_t", "2"],
    "later": ["--pruning.at_epoch", "1"],
}
QUICK = [("default", "validated"), ("tqdm", "not validated")]


@pytest.mark.parametrize(
    ("bar", "validation"),
    [
        pytest.param(bar, validation, marks=() if (bar, validation) in QUICK else pytest.mark.slow)
        for bar in BARS
        for validation in VALIDATIONS
        if bar == "default" or validation in ("validated", "not validated")
    ],
)
def test_two_processes_with_progress_bars_end_by_themselves(
    folder: Path, bar: str, validation: str
) -> None:
    done = run_command(
        [*TWO, *FEW, *VALIDATIONS[validation], *BARS[bar], "--run", "two"], folder, PLACES
    )
    assert done.returncode == 0, done.output
    assert "Epoch 2" in done.output
    with (folder / "lightning_logs/two/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows if row.get("train/loss")] == ["0", "1", "2"]
    assert read(folder / "lightning_logs/two/checkpoints/last.ckpt")["global_step"] == 12


@pytest.mark.slow
def test_processes_that_torchrun_started_end_by_themselves(folder: Path, port: str) -> None:
    (folder / "named.yaml").write_text("run: two\n")
    launcher = [*TORCHRUN, "--nproc_per_node", "2", "--master_port", port, "-m", "synflow_pl"]
    done = run_command(
        [*launcher, *TWO[len(SYNFLOW_PL) :], *FEW, "-c", "named.yaml"], folder, PLACES
    )
    assert done.returncode == 0, done.output
    assert read(folder / "lightning_logs/two/checkpoints/last.ckpt")["global_step"] == 12


@pytest.mark.slow
def test_two_processes_resume_where_a_signal_stopped_them(folder: Path) -> None:
    words = [
        "--trainer.max_epochs",
        "2",
        "--trainer.limit_train_batches",
        "20",
        "--trainer.limit_val_batches",
        "2",
    ]
    words += ["--trainer.callbacks+=crash.Steps", "--pruning.rounds", "2", "--run"]
    steps = folder / "steps"
    with Command([*TWO, *words, "two"], folder, PLACES) as command:
        command.wait_until(lambda: steps.is_file() and int(steps.read_text() or 0) >= 3)
        command.send(signal.SIGTERM)
        assert command.wait().returncode == 128 + signal.SIGTERM
    for name in ("two", "whole"):
        done = run_command([*TWO, *words, name, "--ckpt_path", "last"], folder, PLACES)
        assert done.returncode == 0, done.output
    resumed, whole = (
        read(folder / f"lightning_logs/{name}/checkpoints/last.ckpt") for name in ("two", "whole")
    )
    assert resumed["global_step"] == whole["global_step"] == 40
    for name, tensor in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], tensor, rtol=1e-4, atol=1e-6)
    assert (
        outcome(folder / "lightning_logs/two")[0].keys()
        == outcome(folder / "lightning_logs/whole")[0].keys()
    )


def second_rank(command: Command) -> int:
    """Return the id of the process of rank 1."""
    ranks = [
        pid
        for pid in command.processes()
        if b"\0LOCAL_RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
    ]
    assert ranks
    return ranks[0]


@pytest.mark.parametrize(
    ("number", "to"),
    [
        (signal.SIGINT, "all"),
        pytest.param(signal.SIGTERM, "all", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "first", marks=pytest.mark.slow),
        (signal.SIGTERM, "first"),
        pytest.param(signal.SIGINT, "second", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "second", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_both_processes_within_a_batch(
    folder: Path, number: signal.Signals, to: str
) -> None:
    words = [
        "--trainer.max_epochs",
        "99",
        "--trainer.callbacks+=crash.Steps",
        "--pruning.rounds",
        "2",
        "--run",
        "two",
    ]
    steps = folder / "steps"
    with Command([*TWO, *words], folder, PLACES) as command:
        command.wait_until(lambda: steps.is_file() and int(steps.read_text() or 0) >= 3)
        before = int(steps.read_text())
        if to == "all":
            command.send(number)
        else:
            os.kill(command.process.pid if to == "first" else second_rank(command), number)
        done = command.wait()
    assert done.returncode == 128 + number, done.output
    # One batch may end between reading the file and sending the signal, and another is running
    # when the signal arrives.
    assert read(folder / "lightning_logs/two/checkpoints/last.ckpt")["global_step"] <= before + 2


def test_a_signal_ends_both_processes_within_a_batch_without_checkpoints(folder: Path) -> None:
    words = [
        *("--trainer.max_epochs", "99", "--trainer.callbacks+=crash.Steps"),
        *("--pruning.rounds", "2", "--trainer.enable_checkpointing", "false"),
    ]
    steps = folder / "steps"
    with Command([*TWO, *words], folder, PLACES) as command:
        command.wait_until(lambda: steps.is_file() and int(steps.read_text() or 0) >= 3)
        before = int(steps.read_text())
        command.send(signal.SIGTERM)
        done = command.wait()
    assert done.returncode == 128 + signal.SIGTERM, done.output
    assert "Traceback" not in done.output
    assert int(steps.read_text()) <= before + 2


@pytest.mark.slow
def test_a_signal_during_pruning_ends_both_processes(folder: Path) -> None:
    words = ["--pruning.rounds", "100000", "--run", "two"]
    pruned = folder / "lightning_logs/two/metrics.csv"
    with Command([*TWO, *words], folder, PLACES) as command:
        command.wait_until(lambda: pruned.is_file() and len(pruned.read_text().splitlines()) > 5)
        command.send(signal.SIGTERM)
        assert command.wait().returncode
