from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
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
    with pytest.raises(ValueError, match=r"a\.ckpt' does not fit Linear: weight is \(2, 2\) in the file and \(2, 3\) in the network"):
        load_weights(nn.Linear(3, 2), path)
    del state["network.bias"]
    with pytest.raises(ValueError, match="does not fit Linear: the file lacks bias"):
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


@pytest.mark.parametrize("name", ["plain.pt", "plain.pth", "plain.safetensors"])
def test_a_plain_state_dict_loads_too(name: str, tmp_path: Path) -> None:
    trained, plain = nn.Linear(2, 2), nn.Linear(2, 2)
    if name.endswith("safetensors"):
        save_file(trained.state_dict(), tmp_path / name)
    else:
        write(tmp_path / name, trained.state_dict())
    load_weights(plain, tmp_path / name)
    assert torch.equal(plain.weight, trained.weight)
    assert torch.equal(plain.bias, trained.bias)


def test_all_that_does_not_fit_is_said_in_one_sentence_and_nothing_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 3), nn.Linear(3, 4)).state_dict())
    network = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 7))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit Sequential") as refused:
        load_weights(network, path)
    assert str(refused.value).endswith(
        "1.weight (and 1 more) is (3, 5) in the file and (7, 5) in the network, the file lacks 3.weight (and 1 more),"
        " the network has no 2.weight (and 1 more); with strict false, what fits is loaded"
    )
    assert "\n" not in str(refused.value)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in before.items())


def test_not_strict_loads_what_fits_and_names_the_rest(tmp_path: Path) -> None:
    trained = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 3))
    path = write(tmp_path / "a.pt", trained.state_dict())
    network = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 7))
    before = network[1].weight.clone()
    with pytest.warns(UserWarning, match=r"fills 2 of 4 tensors of Sequential: 1\.weight \(and 1 more\) is \(3, 5\) in the file"):
        load_weights(network, path, strict=False)
    assert torch.equal(network[0].weight, trained[0].weight)
    assert torch.equal(network[1].weight, before)
    with pytest.raises(ValueError, match="does not fit Linear"):
        load_weights(nn.Linear(9, 9), path, strict=False)  # nothing of it fits


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights, but long enough to look like some"])
def test_a_file_of_something_else_is_refused_in_one_sentence(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}' cannot be read") as refused:
        load_weights(nn.Linear(2, 2), tmp_path / name)
    assert "\n" not in str(refused.value)


def test_a_truncated_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", nn.Linear(100, 100).state_dict())
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"a\.pt' cannot be read"):
        load_weights(nn.Linear(100, 100), path)


@pytest.mark.parametrize(
    ("content", "said"), [({"model": {}, "epoch": 3}, "a dict of model, epoch"), ([1, 2], "a list"), ({}, "a dict of ")]
)
def test_a_file_without_weights_by_name_says_what_it_holds(content: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"holds {said}; expected a checkpoint, or a state_dict"):
        load_weights(nn.Linear(2, 2), write(tmp_path / "a.pt", content))
