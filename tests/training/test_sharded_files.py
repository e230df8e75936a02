"""Distributed checkpoints are replaced atomically and read without running code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from synflow_pl.training import find_checkpoint
from synflow_pl.training.checkpoints import read, read_outline
from synflow_pl.training.sharded_files import is_sharded, leftover, read_shards, write_shards


@pytest.fixture(autouse=True)
def alone() -> Any:
    """Process group of this process alone."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def write(path: Path, value: float, unsharded: dict[str, Any] | None = None) -> None:
    state = {"state_dict": {"weight": torch.full((3, 2), value)}}
    optimizer = {
        "state": {"weight": {"step": torch.tensor(7.0)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": ["weight"]}],
    }
    write_shards(
        path,
        {**state, "optimizer_0": optimizer},
        unsharded or {"global_step": 5},
        first=True,
        barrier=lambda: None,
    )


def test_a_checkpoint_is_read_as_that_of_a_single_file(tmp_path: Path) -> None:
    write(tmp_path / "a.ckpt", 2.0)
    content = read_shards(tmp_path / "a.ckpt")
    assert content["global_step"] == 5
    assert torch.equal(content["state_dict"]["weight"], torch.full((3, 2), 2.0))
    (state,) = content["optimizer_states"]
    assert state["state"][0]["step"] == 7
    assert state["param_groups"] == [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0]}]
    outline = read_outline(tmp_path / "a.ckpt")
    assert outline["state_dict"]["weight"].is_meta
    assert outline["state_dict"]["weight"].shape == (3, 2)
    assert outline["optimizer_states"][0]["param_groups"][0]["lr"] == 0.1


def test_a_checkpoint_replaces_a_folder_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_text("a single file")
    for value in (1.0, 2.0):
        write(path, value)
        assert float(read(path)["state_dict"]["weight"][0, 0]) == value
        assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("moment", ["while writing", "before the rename", "after the first rename"])
def test_a_killed_process_leaves_a_complete_checkpoint(moment: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints/last.ckpt"
    write(path, 1.0)
    write(path.parent / "next", 2.0)
    writing = (path.parent / "next").rename(path.parent / ".last.ckpt.writing")
    expected = 1.0
    if moment == "while writing":
        (writing / "meta.pt").unlink()
    elif moment == "after the first rename":
        path.rename(path.parent / ".last.ckpt.replaced")
        expected = 2.0
    found = find_checkpoint(tmp_path)
    assert is_sharded(found)
    assert float(read(found)["state_dict"]["weight"][0, 0]) == expected
    write(path, 3.0)
    assert find_checkpoint(tmp_path) == path
    assert float(read(path)["state_dict"]["weight"][0, 0]) == 3.0
    assert [each.name for each in path.parent.iterdir()] == ["last.ckpt"]
    assert leftover(path) is None


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "code has run")


@pytest.mark.parametrize("file", [".metadata", "meta.pt"])
def test_a_checkpoint_that_holds_code_does_not_run_it(file: str, tmp_path: Path) -> None:
    path, ran = tmp_path / "a.ckpt", tmp_path / "ran"
    write(path, 1.0)
    if file == ".metadata":
        (path / file).write_bytes(pickle.dumps(Malicious(ran)))
    else:
        torch.save({"epoch": Malicious(ran)}, path / file)
    for function in (read, read_outline):
        with pytest.raises(ValueError, match="holds code"):
            function(path)
    assert not ran.exists()


def test_a_value_that_holds_code_does_not_run_it(tmp_path: Path) -> None:
    path, ran = tmp_path / "a.ckpt", tmp_path / "ran"
    write_shards(path, {"state_dict": {"a": Malicious(ran)}}, {}, first=True, barrier=lambda: None)
    with pytest.raises(ValueError, match="holds code"):
        read(path)
    assert not ran.exists()
