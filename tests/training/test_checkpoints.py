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


def test_a_run_folder_stands_for_its_last_checkpoint(tmp_path: Path) -> None:
    early = write(tmp_path / "run" / "checkpoints" / "epoch=0.ckpt", {})
    late = write(tmp_path / "run" / "checkpoints" / "epoch=1.ckpt", {})
    os.utime(early, (1, 1))
    os.utime(late, (2, 2))
    assert find_checkpoint(tmp_path / "run") == late
    last = write(tmp_path / "run" / "checkpoints" / "last.ckpt", {})
    os.utime(last, (0, 0))
    assert find_checkpoint(tmp_path / "run") == last
    assert find_checkpoint(early) == early


def test_a_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
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
    with pytest.raises(
        ValueError,
        match=r"a\.ckpt' does not fit Linear: weight is \(2, 2\) in the file"
        r" and \(2, 3\) in the network",
    ):
        load_weights(nn.Linear(3, 2), path)
    del state["network.bias"]
    with pytest.raises(ValueError, match="does not fit Linear: the file lacks bias"):
        load_weights(plain, write(tmp_path / "b.ckpt", {"state_dict": state}))
    with pytest.raises(ValueError, match=r"holds no weight whose name begins with 'network\.'"):
        load_weights(
            plain,
            write(tmp_path / "c.ckpt", {"state_dict": trained.state_dict(), "synflow_pl": {}}),
        )


def test_a_file_that_contains_code_is_not_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "ran"),)

    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        load_weights(nn.Linear(2, 2), write(tmp_path / "evil.ckpt", {"state_dict": Evil()}))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["plain.pt", "plain.pth", "plain.safetensors"])
def test_a_plain_state_dict_loads(name: str, tmp_path: Path) -> None:
    trained, plain = nn.Linear(2, 2), nn.Linear(2, 2)
    if name.endswith("safetensors"):
        save_file(trained.state_dict(), tmp_path / name)
    else:
        write(tmp_path / name, trained.state_dict())
    load_weights(plain, tmp_path / name)
    assert torch.equal(plain.weight, trained.weight)
    assert torch.equal(plain.bias, trained.bias)


def test_one_error_lists_all_differences_and_nothing_is_loaded(
    tmp_path: Path,
) -> None:
    path = write(
        tmp_path / "a.pt",
        nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 3), nn.Linear(3, 4)).state_dict(),
    )
    network = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 7))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit Sequential") as refused:
        load_weights(network, path)
    assert str(refused.value).endswith(
        "1.weight (and 1 more) is (3, 5) in the file and (7, 5) in the network, the file lacks"
        " 3.weight (and 1 more), the network has no 2.weight (and 1 more); with strict false, what"
        " fits is loaded"
    )
    assert "\n" not in str(refused.value)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in before.items())


def test_non_strict_loading_loads_fitting_tensors_and_warns_of_the_rest(tmp_path: Path) -> None:
    trained = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 3))
    path = write(tmp_path / "a.pt", trained.state_dict())
    network = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 7))
    before = network[1].weight.clone()
    with pytest.warns(
        UserWarning,
        match=r"fills 2 of 4 tensors of Sequential: 1\.weight \(and 1 more\) is \(3, 5\) in the",
    ):
        load_weights(network, path, strict=False)
    assert torch.equal(network[0].weight, trained[0].weight)
    assert torch.equal(network[1].weight, before)
    with pytest.raises(ValueError, match="does not fit Linear"):
        load_weights(nn.Linear(9, 9), path, strict=False)  # no tensor fits


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights, but long enough to look like some"])
def test_a_file_without_tensors_is_refused_in_one_sentence(
    name: str, content: bytes, tmp_path: Path
) -> None:
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
    ("content", "description"),
    [({"model": {}, "epoch": 3}, "a dict of model, epoch"), ([1, 2], "a list"), ({}, "a dict of ")],
)
def test_the_error_for_a_file_without_named_weights_describes_its_content(
    content: object, description: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.pt", content)
    with pytest.raises(ValueError, match=f"holds {description}; expected a checkpoint, or a state"):
        load_weights(nn.Linear(2, 2), path)


# -- names with prefixes of wrappers and other programs


class Nested(nn.Module):
    """Network whose children ``model`` and ``module`` have the names of wrappers' attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.module = nn.Linear(3, 2)
        self.head = nn.Linear(2, 2)


class Plain(nn.Module):
    """Network without names of wrappers' attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 2)


def pair(kind: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    trained = kind()
    torch.manual_seed(2)
    return trained, kind()


def assert_equal(network: nn.Module, trained: nn.Module) -> None:
    expected = trained.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


PREFIXES = [
    "module.",
    "_orig_mod.",
    "network.",
    "model.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "network._orig_mod.",
    "network._orig_mod.module.",
    "model.module.",
    "module.model.",
    "_orig_mod.network.",
    "module.module.",
    "model.network.",
    "_fsdp_wrapped_module.",
]


@pytest.mark.parametrize("kind", [Plain, Nested])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    "keys",
    [(), ("model",), ("state_dict",), ("model_state_dict",), ("model", "state_dict"), ("weights",)],
)
def test_wrapped_and_nested_weights_load(
    kind: type[nn.Module], prefix: str, keys: tuple[str, ...], tmp_path: Path
) -> None:
    trained, network = pair(kind)
    content: object = {f"{prefix}{name}": tensor for name, tensor in trained.state_dict().items()}
    for key in reversed(keys):
        content = {"epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}, key: content}
    load_weights(network, write(tmp_path / "a.pt", content))
    assert_equal(network, trained)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrapped_weights_load_from_safetensors(prefix: str, tmp_path: Path) -> None:
    trained, network = pair(Plain)
    save_file(
        {f"{prefix}{name}": tensor for name, tensor in trained.state_dict().items()},
        tmp_path / "a.safetensors",
    )
    load_weights(network, tmp_path / "a.safetensors")
    assert_equal(network, trained)


def test_weights_load_between_a_network_with_a_compiled_submodule_and_the_plain_network(
    tmp_path: Path,
) -> None:
    trained, network = pair(Plain)
    compiled, _ = pair(Plain)
    compiled.features = torch.compile(compiled.features)  # type: ignore[assignment]
    assert "features._orig_mod.0.weight" in compiled.state_dict()
    load_weights(network, write(tmp_path / "compiled.pt", compiled.state_dict()))
    assert_equal(network, trained)
    _, other = pair(Plain)
    load_weights(torch.compile(other), write(tmp_path / "plain.pt", trained.state_dict()))  # type: ignore[arg-type]
    assert_equal(other, trained)


def test_weights_of_an_averaged_model_load(tmp_path: Path) -> None:
    trained, network = pair(Plain)
    load_weights(
        network, write(tmp_path / "a.pt", torch.optim.swa_utils.AveragedModel(trained).state_dict())
    )
    assert_equal(network, trained)


def test_the_network_of_a_lightning_module_loads_if_its_checkpoint_also_has_a_loss_and_an_average(
    tmp_path: Path,
) -> None:
    trained, network = pair(Plain)
    state = {f"model.{name}": tensor for name, tensor in trained.state_dict().items()}
    state |= {f"ema.module.{name}": tensor + 1 for name, tensor in trained.state_dict().items()} | {
        "criterion.weight": torch.ones(2)
    }
    load_weights(
        network,
        write(
            tmp_path / "a.ckpt",
            {"state_dict": state, "callbacks": {"a": {"model": {"weight": torch.ones(1)}}}},
        ),
    )
    assert_equal(network, trained)


def test_weights_are_those_under_the_usual_key_beside_an_average(tmp_path: Path) -> None:
    trained, network = pair(Plain)
    average = {name: tensor + 1 for name, tensor in trained.state_dict().items()}
    load_weights(network, write(tmp_path / "a.pt", {"ema": average, "model": trained.state_dict()}))
    assert_equal(network, trained)


@pytest.mark.parametrize("keys", [("model", "state_dict"), ("teacher", "student")])
def test_two_parts_that_fit_and_differ_are_ambiguous(keys: tuple[str, str], tmp_path: Path) -> None:
    trained, network = pair(Plain)
    other = {name: tensor + 1 for name, tensor in trained.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(
        ValueError, match=rf"a\.pt' is ambiguous: its weights under '{min(keys)}|{max(keys)}"
    ) as refused:
        load_weights(
            network,
            write(tmp_path / "a.pt", dict(zip(keys, (trained.state_dict(), other), strict=True))),
        )
    assert all(f"'{key}'" in str(refused.value) for key in keys)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    load_weights(
        network, write(tmp_path / "b.pt", dict.fromkeys(keys, trained.state_dict()))
    )  # equal, so either will do
    assert_equal(network, trained)


def test_attributes_that_both_fit_and_differ_are_ambiguous(tmp_path: Path) -> None:
    trained, network = pair(Plain)
    state = {f"model.{name}": tensor for name, tensor in trained.state_dict().items()}
    state |= {f"network.{name}": tensor + 1 for name, tensor in trained.state_dict().items()}
    with pytest.raises(ValueError, match=r"ambiguous: its weights under 'network' and 'model' fit"):
        load_weights(network, write(tmp_path / "a.pt", state))


def test_weights_with_and_without_a_wrapper_are_refused_by_unexpected_keys(tmp_path: Path) -> None:
    trained, network = pair(Plain)
    state = trained.state_dict()
    both = {**state, **{f"module.{name}": tensor + 1 for name, tensor in state.items()}}
    with pytest.raises(
        ValueError,
        match=r"does not fit Plain: the network has no module\.features\.0\.weight \(and 8 more\)",
    ):
        load_weights(network, write(tmp_path / "a.pt", both))


def test_wrapped_weights_of_another_network_are_refused_by_missing_and_unexpected_keys(
    tmp_path: Path,
) -> None:
    state = {f"module.{name}": tensor for name, tensor in Plain().state_dict().items()}
    state["module.tail.weight"] = state.pop("module.head.weight")
    with pytest.raises(
        ValueError, match=r"the file lacks head\.weight, the network has no tail\.weight"
    ):
        load_weights(Plain(), write(tmp_path / "a.pt", {"model": state}))


def test_masks_in_place_of_weights_are_refused(tmp_path: Path) -> None:
    masks = {"weight": torch.ones(2, 2, dtype=torch.bool)}
    with pytest.raises(
        ValueError, match=r"weight is torch\.bool in the file and torch\.float32 in the network"
    ):
        load_weights(nn.Linear(2, 2, bias=False), write(tmp_path / "a.pt", masks))


def test_a_tensor_with_two_names_loads_from_a_file_that_stores_it_once(tmp_path: Path) -> None:
    network, trained = (
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
    )
    for tied in (network, trained):
        tied[1].weight = tied[0].weight
    state = trained.state_dict()
    del state["1.weight"]
    load_weights(network, write(tmp_path / "a.pt", state))
    assert_equal(network, trained)
    with pytest.raises(ValueError, match=r"the file lacks 1\.weight"):
        load_weights(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), tmp_path / "a.pt")
