"""Tests of export, of reading exported files and of the model card."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from synflow_pl import compact, prune
from synflow_pl.export import FORMATS, Metadata, export, load_exported, verify, write_card
from synflow_pl.networks import ResNet
from synflow_pl.pruners import SynFlow

SHAPE = (2, 8, 8)
METADATA = Metadata(
    SHAPE,
    10,
    (0.5, 0.5),
    (0.25, 0.25),
    "synflow_pl.networks.ResNet",
    {"depth": 8, "width": 8, "input_shape": list(SHAPE)},
    {"name": "small", "density": 0.05},
)
COLOUR = {"input_shape": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.25,) * 3}


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    """Return a pruned network with running statistics of images, and its compacted version."""
    torch.manual_seed(0)
    network = ResNet(8, width=8, input_shape=SHAPE)
    masks = prune(network, SynFlow(), density=0.05, rounds=10, input_shape=SHAPE)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.3)
    network.train()(torch.randn(64, *SHAPE))
    network.eval()
    return network, compact(network, masks, input_shape=SHAPE)


def images(count: int = 5) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FORMATS)
def test_an_exported_file_gives_the_outputs_of_the_network_for_any_batch_size(
    tmp_path: Path, networks: tuple[nn.Module, nn.Module], name: str
) -> None:
    network, small = networks
    difference = export(small, network, METADATA, tmp_path / f"model.{name}", images())
    assert difference < 1e-5
    exported = load_exported(tmp_path / f"model.{name}", trust=True)
    assert exported.metadata == METADATA
    for count in (1, 7):
        with torch.no_grad():
            torch.testing.assert_close(
                exported(images(count)), network(images(count)), rtol=1e-4, atol=1e-5
            )
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"model.{name}"]
    # Images of another shape or dtype are an error.
    for wrong in (
        torch.zeros(1, 3, 8, 8),
        torch.zeros(2, 8, 8),
        torch.zeros(1, *SHAPE, dtype=torch.float64),
    ):
        with pytest.raises(
            ValueError, match=r"images: .* expected \(N, 2, 8, 8\) of torch.float32"
        ):
            exported(wrong)
    whole = (tmp_path / f"model.{name}").read_bytes()
    (tmp_path / f"half.{name}").write_bytes(whole[: len(whole) // 2])
    (tmp_path / f"strange.{name}").write_bytes(b"something else")
    for file in ("half", "strange"):
        with pytest.raises(
            ValueError, match=rf"{file}\.{name}' cannot be read as .* damaged or something else"
        ):
            load_exported(tmp_path / f"{file}.{name}", trust=True)


def test_a_file_that_can_run_code_is_read_only_with_trust(tmp_path: Path) -> None:
    (tmp_path / "strange.pt2").write_bytes(b"code")
    with pytest.raises(
        ValueError,
        match=r"strange\.pt2' can run code when it is read; say that you trust it \(--trust\)",
    ):
        load_exported(tmp_path / "strange.pt2")


def test_no_file_is_written_if_its_outputs_do_not_agree_with_the_network(
    tmp_path: Path, networks: tuple[nn.Module, nn.Module]
) -> None:
    network, _ = networks
    torch.manual_seed(3)
    other = ResNet(8, width=8, input_shape=SHAPE)
    with pytest.raises(ValueError, match="more or less than the network on real inputs"):
        export(other, network, METADATA, tmp_path / "model.safetensors", images())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("safetensors", COLOUR, "does not run on the inputs that it says it is for"),
        (
            "safetensors",
            {"input_shape": ("a", 8, 8)},
            r"has a description that cannot be read \(input_shape: \('a', 8, 8\)\)",
        ),
        (
            "safetensors",
            {"mean": (0.5,) * 3},
            r"has a description that cannot be read \(mean: \(0.5, 0.5, 0.5\)\)",
        ),
        (
            "safetensors",
            {"std": (0.25, 0)},
            r"has a description that cannot be read \(std: \(0.25, 0\)\)",
        ),
        (
            "safetensors",
            {"network": 5},
            r"has a description that cannot be read \(network: 5\)",
        ),
        (
            "safetensors",
            {"num_classes": 11},
            r"gives \(2, 10\) for two black images, and says that it gives \(2, 11\)",
        ),
        ("onnx", COLOUR, "does not run on the inputs that it says it is for"),
        ("pt2", COLOUR, "does not run on the inputs that it says it is for"),
    ],
)
def test_reading_a_file_that_contradicts_its_metadata_is_an_error(
    tmp_path: Path,
    networks: tuple[nn.Module, nn.Module],
    name: str,
    changes: dict[str, object],
    message: str,
) -> None:
    _, small = networks
    FORMATS[name](small, replace(METADATA, **changes), tmp_path / f"a.{name}", images(2))
    with pytest.raises(ValueError, match=rf"a\.{name}' {message}") as raised:
        load_exported(tmp_path / f"a.{name}", trust=True)
    assert len(str(raised.value).splitlines()) == 1


def test_reading_an_onnx_file_without_metadata_is_an_error(
    tmp_path: Path, networks: tuple[nn.Module, nn.Module]
) -> None:
    onnx = pytest.importorskip("onnx")
    torch.onnx.export(
        networks[1], (images(2),), tmp_path / "foreign.onnx", dynamo=True, verbose=False
    )
    assert onnx.load(tmp_path / "foreign.onnx").graph.node
    with pytest.raises(ValueError, match=r"foreign\.onnx' has no description of its inputs"):
        load_exported(tmp_path / "foreign.onnx")


class Own(nn.Module):
    """A network outside the package, which with ``depends`` branches on values."""

    def __init__(self, *, depends: bool) -> None:
        super().__init__()
        self.first, self.last, self.depends = nn.Linear(128, 20), nn.Linear(20, 10), depends

    def forward(self, pictures: Tensor) -> Tensor:
        hidden = self.first(pictures.flatten(1)).relu()
        return self.last(2 * hidden if self.depends and float(hidden.sum()) > 0 else hidden)


def test_weights_of_a_network_outside_the_package_are_read_into_a_given_network(
    tmp_path: Path,
) -> None:
    network = Own(depends=False).eval()
    masks = prune(network, SynFlow(), density=0.05, rounds=10, input_shape=SHAPE)
    small, metadata = (
        compact(network, masks, input_shape=SHAPE),
        replace(METADATA, network="mine.Own", arguments={}),
    )
    for name in FORMATS:
        export(small, network, metadata, tmp_path / f"own.{name}", images())
    with pytest.raises(
        ValueError,
        match=r"of mine\.Own, which is not of synflow_pl\.networks; "
        r".*load_exported\(path, network=network\)",
    ):
        load_exported(tmp_path / "own.safetensors")
    exported = load_exported(tmp_path / "own.safetensors", network=Own(depends=False))
    with torch.no_grad():
        torch.testing.assert_close(exported(images()), network(images()))


@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_no_file_is_written_for_a_network_that_cannot_be_traced(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    network = Own(depends=True).eval()
    with pytest.raises(
        ValueError, match=rf"Own cannot be written as \.{name}, and no file was written: "
    ) as raised:
        export(
            network,
            network,
            replace(METADATA, network="mine.Own"),
            tmp_path / f"own.{name}",
            images(),
        )
    assert len(str(raised.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


def test_verification_rejects_a_constant_for_a_network_that_hardly_depends_on_its_input() -> None:
    class Nearly(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            return 1000 + 0.05 * batch.flatten(1)[:, :3]

    constant = load_like(lambda batch: torch.full((len(batch), 3), 1000.0))
    with pytest.raises(ValueError, match="more or less than the network"):
        verify(constant, Nearly(), images())


def load_like(run):  # type: ignore[no-untyped-def]
    from synflow_pl.export import Exported

    return Exported(METADATA, run)


def test_reading_a_safetensors_file_only_builds_networks_of_the_package(
    tmp_path: Path, networks: tuple[nn.Module, nn.Module]
) -> None:
    from safetensors.torch import save_file

    metadata = Metadata(SHAPE, 10, (0.5, 0.5), (0.5, 0.5), "os.system", {"command": "true"})
    save_file(
        {"weight": torch.zeros(1)},
        tmp_path / "a.safetensors",
        metadata={"synflow_pl": metadata.json()},
    )
    with pytest.raises(
        ValueError, match=r"the weights of os\.system, which is not of synflow_pl\.networks"
    ):
        load_exported(tmp_path / "a.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="has no description of its inputs"):
        load_exported(tmp_path / "b.safetensors")
    save_file(
        {"weight": torch.zeros(1)},
        tmp_path / "c.safetensors",
        metadata={"synflow_pl": METADATA.json()},
    )
    with pytest.raises(
        ValueError, match=r"lacks blocks.0.bn1.bias, which synflow_pl.networks.ResNet has"
    ):
        load_exported(tmp_path / "c.safetensors")


def test_the_card_lists_the_checksum_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    card = write_card(tmp_path / "model", METADATA, {"onnx": 3e-7}).read_text()
    assert hashlib.sha256(b"onnx").hexdigest() in card
    assert "- density: 0.05" in card
    assert "| `model.onnx` | 4 |" in card
    assert "3.0e-07" in card
    assert "model.pt2" not in card


def test_the_card_keeps_rows_of_the_same_network_and_names_files_of_another(tmp_path: Path) -> None:
    for name in FORMATS:
        (tmp_path / f"model.{name}").write_bytes(name.encode())
    write_card(tmp_path / "model", METADATA, {"onnx": 3e-7, "pt2": 4e-7})
    (tmp_path / "model.pt2").write_bytes(b"of something else")
    card = write_card(tmp_path / "model", METADATA, {"safetensors": 0.0}).read_text()
    assert "3.0e-07" in card
    assert "4.0e-07" not in card
    assert card.endswith("Not described here, since another export wrote it: `model.pt2`.\n")
    card = write_card(
        tmp_path / "model", replace(METADATA, properties={"density": 0.1}), {"safetensors": 0.0}
    ).read_text()
    assert card.endswith("wrote it: `model.onnx`, `model.pt2`.\n")


@pytest.mark.parametrize("name", FORMATS)
def test_reading_a_file_with_one_wrong_byte_is_an_error_by_its_card(
    tmp_path: Path, networks: tuple[nn.Module, nn.Module], name: str
) -> None:
    network, small = networks
    path = tmp_path / f"model.{name}"
    difference = export(small, network, METADATA, path, images())
    card = write_card(tmp_path / "model", METADATA, {name: difference})
    load_exported(path, trust=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"model\.{name}' is not the file that 'model.md' beside it describes"
    ):
        load_exported(path, trust=True)
    card.unlink()
    if name == "pt2":  # a zip archive has a checksum for each file
        with pytest.raises(ValueError, match="damaged or something else"):
            load_exported(path, trust=True)


def test_reading_a_file_with_weights_of_nan_is_an_error(
    tmp_path: Path, networks: tuple[nn.Module, nn.Module]
) -> None:
    small = copy.deepcopy(networks[1])
    next(small.parameters()).data.fill_(torch.nan)
    FORMATS["safetensors"](small, METADATA, tmp_path / "a.safetensors", images(2))
    with pytest.raises(ValueError, match=r"a\.safetensors' gives nan for two black images"):
        load_exported(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("give", "kind"),
    [
        (lambda y: (y, y), "a tuple"),
        (lambda y: y > 0, "a tensor of torch.bool"),
        (lambda y: {"logits": y}, "a dict"),
    ],
    ids=["tuple", "booleans", "dict"],
)
def test_exporting_a_network_that_does_not_return_one_tensor_is_an_error(
    tmp_path: Path, give, kind: str
) -> None:  # type: ignore[no-untyped-def]
    class Heads(nn.Sequential):
        def forward(self, x: Tensor) -> object:
            return give(super().forward(x))

    network = Heads(nn.Flatten(), nn.Linear(48, 3))
    with pytest.raises(
        ValueError,
        match=f"Heads.forward returns {kind}, and a file is verified by one floating-point tensor",
    ):
        export(network, network, None, tmp_path / "model.pt2", torch.randn(2, 3, 4, 4))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
