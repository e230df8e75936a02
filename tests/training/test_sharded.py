"""A network whose parameters are sharded over processes has the masks and zeros of one process."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import sharded_jobs
import torch
from torch import Tensor

from synflow_pl import Masks, prune
from synflow_pl.training import load_weights
from synflow_pl.training.checkpoints import load_masks, read
from tests.processes import Command

pytestmark = pytest.mark.usefixtures("one_thread")

JOBS = ["like_one", "resumed", "rewritten", "memory", "never_whole"]
SLOW_JOBS = ["like_one_too", "tensor_parallel", "combined"]


def launch(folder: Path, processes: int, jobs: list[str], *options: str) -> Command:
    """Start jobs in several processes.

    Args:
        folder: Folder of the results.
        processes: Number of processes.
        jobs: Names of the jobs.
        options: Options of torchrun.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", *options]
    script = Path(sharded_jobs.__file__)
    places = [str(script.parents[2]), str(script.parent)]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)}
    # Otherwise restarted ranks may read the addresses of killed ones.
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    words = [*torchrun, f"--nproc_per_node={processes}", script, folder, *jobs]
    return Command(words, folder, environment)


def start(folder: Path, processes: int, jobs: list[str], limit: float) -> None:
    """Run jobs in several processes, and check that they end without an error."""
    with launch(folder, processes, jobs) as command:
        done = command.wait(limit)
    assert done.returncode == 0, done.output[-4000:]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of two processes."""
    folder = tmp_path_factory.mktemp("two")
    start(folder, 2, JOBS, limit=150)
    return folder


@pytest.fixture(scope="module")
def two_slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of two processes, of the slow jobs."""
    folder = tmp_path_factory.mktemp("two_slow")
    start(folder, 2, SLOW_JOBS, limit=200)
    return folder


def assert_close(path: Path, expected: Path, tolerance: float = 1e-12) -> None:
    """Check that two checkpoints have equal masks, and weights that are equal but for rounding."""
    masks, others = load_masks(path), load_masks(expected)
    assert masks is not None
    assert others is not None
    assert masks.keys() == others.keys()
    assert masks.kept == others.kept
    assert all(torch.equal(mask, others[name]) for name, mask in masks.items())
    weights, same = (read(each)["state_dict"] for each in (path, expected))
    assert weights.keys() == same.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, same[name], rtol=0, atol=tolerance)
    for name, mask in masks.items():
        assert not weights[f"network.{name}"][~mask].any()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of one process."""
    return alone(tmp_path_factory.mktemp("one"), "like_one", "resumed")


@pytest.fixture(scope="module")
def one_slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of one process, of the slow jobs."""
    return alone(tmp_path_factory.mktemp("one_slow"), *SLOW_JOBS)


def alone(folder: Path, *jobs: str) -> Path:
    for name in jobs:
        (folder / name).mkdir()
        getattr(sharded_jobs, name)(folder / name)
    return folder


@pytest.mark.parametrize(("pruner", "optimizer"), sharded_jobs.FAST)
def test_two_ranks_train_like_one_process(
    pruner: str, optimizer: str, one: Path, two: Path
) -> None:
    name = f"like_one/{pruner}-{optimizer}.ckpt"
    assert_close(two / name, one / name)


@pytest.mark.slow
@pytest.mark.parametrize("pruner", sharded_jobs.PRUNERS)
def test_two_ranks_train_like_one_process_with_the_other_optimiser(
    pruner: str, one_slow: Path, two_slow: Path
) -> None:
    (path,) = (two_slow / "like_one_too").glob(f"{pruner}-*.ckpt")
    assert_close(path, one_slow / "like_one_too" / path.name)


@pytest.mark.parametrize("end", ["end", "again"])
def test_a_distributed_checkpoint_resumes_as_if_nothing_had_happened(
    end: str, one: Path, two: Path
) -> None:
    assert_close(two / f"resumed/{end}.ckpt", one / "resumed/end.ckpt")


def test_a_distributed_checkpoint_resumes_in_one_process(
    one: Path, two: Path, tmp_path: Path
) -> None:
    sharded_jobs.resume(tmp_path, two / "resumed/middle.ckpt", "again.ckpt")
    assert_close(tmp_path / "again.ckpt", one / "resumed/end.ckpt")


def test_a_consolidated_checkpoint_loads_into_the_plain_network(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = two / "resumed/end.ckpt", tmp_path / "whole.ckpt"
    monkeypatch.setattr(sys, "argv", ["tool", str(folder), "--output_file", str(file)])
    runpy.run_module("lightning_fabric.utilities.consolidate_checkpoint", run_name="__main__")
    assert_close(file, folder)
    network = load_weights(sharded_jobs.network(), file)
    masks = load_masks(file)
    assert masks is not None
    assert all(not network.get_parameter(name)[~mask].any() for name, mask in masks.items())


def test_weights_that_something_else_writes_are_zero_again_and_masks_are_saved_whole(
    two: Path,
) -> None:
    path = two / "rewritten/end.ckpt"
    masks, saved = load_masks(path), Masks.load(two / "rewritten/masks.safetensors")
    assert masks is not None
    assert all(torch.equal(mask, saved[name]) for name, mask in masks.items())
    weights = read(path)["state_dict"]
    for name, mask in masks.items():
        assert not weights[f"network.{name}"][~mask].any()


def test_masks_take_one_byte_for_each_weight_of_a_rank(two: Path) -> None:
    assert_one_byte_for_each_weight(two, 2)


def assert_one_byte_for_each_weight(folder: Path, ranks: int) -> None:
    """Check what a pruned training holds more than an unpruned one, as ``memory`` measured it."""
    held = 0
    for rank in range(ranks):
        (unpruned, weights), (pruned, _) = torch.load(folder / f"memory/memory-{rank}.pt")
        assert weights <= pruned - unpruned <= weights + 64  # torch keeps a few numbers
        held += weights
    assert held == sum(p.numel() for p in sharded_jobs.network().parameters() if p.dim() > 1)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["end", "again"])
def test_tensor_parallel_ranks_train_like_one_process(
    end: str, one_slow: Path, two_slow: Path
) -> None:
    assert_close(two_slow / f"tensor_parallel/{end}.ckpt", one_slow / "tensor_parallel/end.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("precision", sharded_jobs.PRECISIONS)
def test_accumulation_checkpointing_compilation_and_precision_go_with_sharding_at_once(
    precision: str, one_slow: Path, two_slow: Path
) -> None:
    plain, combined = (two_slow / f"combined/{precision}-{name}.ckpt" for name in ("plain", "all"))
    assert_close(combined, plain)
    alone = one_slow / f"combined/{precision}-plain.ckpt"
    # Gradients in bfloat16 have 8 bits, and two ranks sum them in another order than one process.
    assert_close(combined, alone, 1e-6 if precision == "32-true" else 5e-3)


@pytest.mark.parametrize("name", sharded_jobs.SHARDWISE)
def test_a_network_that_is_whole_on_no_rank_has_the_masks_of_one_process(
    name: str, two: Path
) -> None:
    assert_masks_of_one(two, name)


def assert_masks_of_one(folder: Path, name: str) -> None:
    """Check the masks of a network that is whole on no rank against those of the same weights."""
    pruner, options = sharded_jobs.SHARDWISE[name]
    network = sharded_jobs.Blocks()
    weights: dict[str, Tensor] = torch.load(folder / f"never_whole/{name}.pt")
    network.load_state_dict(weights)
    expected: Any = prune(network, pruner, on_collapse="ignore", **options)
    masks = load_masks(folder / f"never_whole/{name}.ckpt")
    assert masks is not None
    assert masks.keys() == expected.keys()
    assert all(torch.equal(mask, expected[layer]) for layer, mask in masks.items())


def test_a_pruner_that_needs_the_whole_network_is_refused_on_every_rank(two: Path) -> None:
    for rank in range(2):
        message = (two / f"never_whole/refused-{rank}").read_text()
        assert message.startswith("the network is whole on no rank, and SynFlow scores")


# -- four ranks, of which some hold nothing of a layer with five units


@pytest.fixture(scope="module")
def four(two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of four processes."""
    folder, middle = tmp_path_factory.mktemp("four"), two / "resumed/middle.ckpt"
    jobs = ["like_one", "like_one_too", "never_whole", "memory", "tensor_parallel"]
    start(folder, 4, [f"resumed={middle}", *jobs], limit=300)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("pruner", sharded_jobs.PRUNERS)
def test_four_ranks_train_like_one_process_with_both_optimisers(
    pruner: str, one: Path, one_slow: Path, four: Path
) -> None:
    names = [path.relative_to(four) for path in four.glob(f"like_one*/{pruner}-*.ckpt")]
    assert len(names) == 2
    for name in names:
        assert_close(four / name, (one if name.parent.name == "like_one" else one_slow) / name)


@pytest.mark.slow
def test_four_ranks_resume_a_checkpoint_of_two(one: Path, four: Path) -> None:
    assert_close(four / "resumed/again.ckpt", one / "resumed/end.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("end", ["end", "again"])
def test_four_ranks_combine_both_kinds_of_sharding(end: str, one_slow: Path, four: Path) -> None:
    assert_close(four / f"tensor_parallel/{end}.ckpt", one_slow / "tensor_parallel/end.ckpt")


@pytest.mark.slow
def test_four_ranks_choose_masks_and_hold_them_as_two_do(four: Path) -> None:
    for name in sharded_jobs.SHARDWISE:
        assert_masks_of_one(four, name)
    assert_one_byte_for_each_weight(four, 4)
