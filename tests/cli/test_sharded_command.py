"""Sharded training as users start it: compiled, on two nodes, and read by other commands."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from synflow_pl import diagnose, load_weights
from synflow_pl.data import Digits
from synflow_pl.networks import Conv
from synflow_pl.training.checkpoints import load_masks, read
from tests.cli.conftest import QUIET
from tests.cli.test_distributed_command import (
    FIT,
    PLACES,
    SYNFLOW_PL,
    TORCHRUN,
    compare,
    on_nodes,
    options,
    second_rank,
    start,
    wait,
)
from tests.processes import Command, run_command

pytestmark = pytest.mark.slow

SHARDED = [*FIT, *options("synflow"), "-c", "trainer/fsdp", "--trainer.devices", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the run ``two`` of two sharded processes, and ``one`` of one process."""
    folder = tmp_path_factory.mktemp("place")
    wait(start(folder, *SYNFLOW_PL, *SHARDED, "--run", "two"))
    wait(start(folder, *SYNFLOW_PL, *FIT, *options("synflow"), "--run", "one"))
    return folder


def weights(run: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = read(run / "checkpoints/last.ckpt")["state_dict"]
    return state


def test_two_sharded_processes_choose_the_masks_of_one_and_follow_its_loss_curve(
    place: Path,
) -> None:
    compare(place / "lightning_logs/two", place / "lightning_logs/one")


def test_compiled_blocks_train_as_uncompiled_ones(place: Path) -> None:
    command = [*SYNFLOW_PL, *SHARDED, "--model.compile", "true", "--run", "compiled"]
    environment = {"OMP_NUM_THREADS": "1", "TORCH_LOGS": "graph_code"}
    done = run_command(command, place, environment, limit=200)
    assert done.returncode == 0, done.output[-3000:]
    assert "torch.conv2d" in done.output, done.output[-3000:]  # in a compiled graph
    compare(place / "lightning_logs/compiled", place / "lightning_logs/two")
    state, expected = (weights(place / "lightning_logs" / name) for name in ("compiled", "two"))
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-5)


def test_two_nodes_shard_and_train_as_one_process(
    place: Path, nodes: list[tuple[str, str]], port: str
) -> None:
    (place / "named.yaml").write_text("run: nodes\n")
    words = [*SHARDED, "--trainer.num_nodes", "2", "-c", "named.yaml"]
    wait(*(start(place, *node, *words) for node in on_nodes(nodes, port, 2)))
    run, one = (place / "lightning_logs" / name for name in ("nodes", "one"))
    compare(run, one)
    # Each of the four ranks wrote its shards into the one folder.
    shards = {path.name.split("_")[2] for path in (run / "checkpoints/last.ckpt").glob("*.distcp")}
    assert shards == {"0", "1", "2", "3"}
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(run)[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("consolidated", [False, True])
def test_commands_and_functions_read_a_distributed_checkpoint(
    place: Path, consolidated: bool
) -> None:
    run = place / "lightning_logs/two"
    expected, path = weights(run), run / "checkpoints/last.ckpt"
    if consolidated:
        tool = [sys.executable, "-m", "lightning_fabric.utilities.consolidate_checkpoint"]
        path = place / "whole.ckpt"
        wait(start(place, *tool, str(run / "checkpoints/last.ckpt"), "--output_file", str(path)))
        assert path.is_file()
    checkpoint = ["--ckpt_path", str(path), *(["-c", "demo"] if consolidated else [])]
    output = ["--output", str(place / "written"), "--format", "safetensors"]
    wait(start(place, *SYNFLOW_PL, "export", *checkpoint, *output))
    exported = load_file(place / "written.safetensors")
    assert exported.keys() == {name.removeprefix("network.") for name in expected}
    assert all(torch.equal(expected[f"network.{name}"], w) for name, w in exported.items())
    wait(start(place, *SYNFLOW_PL, "compact", *checkpoint, "--output", str(place / "smaller")))
    assert load_file(place / "smaller.safetensors").keys() == exported.keys()
    one = ["--trainer.strategy", "auto", "--trainer.devices", "1", "--trainer.accelerator", "cpu"]
    done = run_command(
        [*SYNFLOW_PL, "test", *checkpoint, *QUIET, *one], place, {"OMP_NUM_THREADS": "1"}, limit=120
    )
    assert done.returncode == 0, done.output[-3000:]
    network, masks = load_weights(Conv((1, 28, 28)), path), load_masks(path)
    assert all(torch.equal(expected[f"network.{n}"], w) for n, w in network.state_dict().items())
    images, labels = Digits().images(False)
    with torch.no_grad():
        right = (network((images / 255 - 0.1307) / 0.3081).argmax(1) == labels).double().mean()
    printed = re.findall(r"test/accuracy\W+([\d.]+)", done.output)
    assert [float(value) for value in printed] == [
        pytest.approx(float(right), abs=1.5 / len(labels))
    ]
    recorded = json.loads((run / "diagnosis.json").read_text())
    found = diagnose(network, masks, input_shape=(1, 28, 28))
    assert [layer.kept for layer in found.layers] == [layer["kept"] for layer in recorded["layers"]]


def test_torchrun_restarts_the_command_after_a_rank_is_killed(place: Path) -> None:
    folder = place / "restarted"
    folder.mkdir()
    torchrun = [*TORCHRUN, "--standalone", "--max-restarts", "3", "--nproc_per_node", "2", "-m"]
    words = [*SHARDED, "--trainer.callbacks+=crash.Steps", "--checkpoint_every_n_steps", "2"]
    environment = {**PLACES, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = [*torchrun, "synflow_pl", *words, "--ckpt_path", "last"]
    with Command(command, folder, environment) as running:
        steps = folder / "steps"
        running.wait_until(lambda: steps.is_file() and int(steps.read_text() or 0) >= 4, 120)
        os.kill(second_rank(running), signal.SIGKILL)
        done = running.wait(120)
    assert done.returncode == 0, done.output[-3000:]
    assert re.search("Resuming from step [1-9]", done.output), done.output[-3000:]
    (run,) = (folder / "lightning_logs").iterdir()
    for name, tensor in weights(place / "lightning_logs/two").items():
        torch.testing.assert_close(weights(run)[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_a_sharded_run_resumes_in_one_process_and_under_ddp(place: Path, strategy: str) -> None:
    """It takes the step count, the optimiser and the masks from the sharded run."""
    devices = "1" if strategy == "auto" else "2"
    words = [*FIT, *options("synflow"), "--trainer.strategy", strategy, "--trainer.max_epochs", "4"]
    words += ["--trainer.devices", devices]
    for name in ("two", "one"):
        path = place / "lightning_logs" / name
        wait(
            start(
                place,
                *(*SYNFLOW_PL, *words, "--ckpt_path", str(path / "checkpoints/last.ckpt")),
                *("--run", f"{name}-{strategy}"),
            )
        )
    runs = [place / f"lightning_logs/{name}-{strategy}" for name in ("two", "one")]
    curves = []
    for run in runs:
        assert read(run / "checkpoints/last.ckpt")["global_step"] == 16
        with (run / "metrics.csv").open() as file:
            curves.append([float(r["train/loss"]) for r in csv.DictReader(file) if r["train/loss"]])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    state, expected = (load_masks(run) for run in runs)
    assert state is not None
    assert expected is not None
    assert all(torch.equal(mask, expected[name]) for name, mask in state.items())
