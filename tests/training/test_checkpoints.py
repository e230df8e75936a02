from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from synflow_pl.training import find_checkpoint, load_weights


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def test_a_run_means_its_last_checkpoint(tmp_path: Path) -> None:
    early = write(tmp_path / "run" / "checkpoints" / "epoch=0.ckpt", {})
    late = write(tmp_path / "run" / "checkpoints" / "epoch=1.ckpt", {})
    os.utime(early, (1, 1))
    os.utime(late, (2, 2))
    assert find_checkpoint(tmp_path / "run") == late
    last = write(tmp_path / "run" / "checkpoints" / "last.ckpt", {})
    os.utime(last, (0, 0))
    assert find_checkpoint(tmp_path / "run") == last
    assert find_checkpoint(early) == early


def test_where_there_is_no_checkpoint_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nowhere"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        find_checkpoint(tmp_path)


def test_weights_load_strictly_into_the_plain_network(tmp_path: Path) -> None:
    trained, plain = nn.Linear(2, 2), nn.Linear(2, 2)
    state = {f"network.{name}": tensor for name, tensor in trained.state_dict().items()}
    path = write(tmp_path / "a.ckpt", {"state_dict": state | {"metric.total": torch.zeros(1)}})
    assert load_weights(plain, path) is plain
    assert torch.equal(plain.weight, trained.weight)
    with pytest.raises(ValueError, match=r"a\.ckpt' does not fit Linear: size mismatch for weight"):
        load_weights(nn.Linear(3, 2), path)
    del state["network.bias"]
    with pytest.raises(ValueError, match="does not fit Linear: Missing key"):
        load_weights(plain, write(tmp_path / "b.ckpt", {"state_dict": state}))
    with pytest.raises(ValueError, match=r"holds no weight whose name begins with 'network\.'"):
        load_weights(plain, write(tmp_path / "c.ckpt", {"state_dict": trained.state_dict()}))


def test_a_file_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "ran"),)

    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        load_weights(nn.Linear(2, 2), write(tmp_path / "evil.ckpt", {"state_dict": Evil()}))
    assert not (tmp_path / "ran").exists()
