"""Networks of any inputs are exported with a description of their arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from synflow_pl import compact, prune
from synflow_pl.export import FORMATS, TensorMetadata, export, load_exported, write_card
from synflow_pl.pruners import SynFlow


class Tagger(nn.Module):
    """Attention over tokens, with a mask without a batch dimension, a scale and a switch."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.query, self.value = nn.Linear(8, 8), nn.Linear(8, 8)
        self.hidden, self.head = nn.Linear(8, 40), nn.Linear(40, 5)

    def forward(
        self, tokens: Tensor, *, mask: Tensor, scale: float = 1.0, causal: bool = True
    ) -> Tensor:
        x = self.words(tokens)
        weights = self.query(x) @ x.mT * scale
        if causal:
            weights = weights.masked_fill(~mask, -1e9)
        logits: Tensor = self.head(self.hidden(weights.softmax(-1) @ self.value(x)).relu())
        return logits


class Nested(nn.Module):
    """Dictionary of a list of features and a tuple, as a loader may give it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 30), nn.Linear(6, 30)
        self.head = nn.Linear(30, 3)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        one, two = batch["features"]
        shift, name = batch["extra"]
        hidden = self.first(one) + self.second(two) + (shift if name == "add" else 0)
        logits: Tensor = self.head(hidden.relu())
        return logits


class Keywords(nn.Module):
    """Two images by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 12, 3), nn.Linear(24, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        features = [self.conv(x).relu().mean((2, 3)) for x in (left, right)]
        logits: Tensor = self.head(torch.cat(features, 1))
        return logits


def tagger_input(size: int = 4) -> tuple[tuple[Any, ...], dict[str, Any]]:
    tokens = torch.randint(11, (size, 6))
    return (tokens,), {
        "mask": torch.ones(6, 6).tril().bool(),
        "scale": 0.5,
        "causal": True,
    }


def nested_input(size: int = 4) -> tuple[tuple[Any, ...], dict[str, Any]]:
    batch = {
        "features": [torch.randn(size, 4), torch.randn(size, 6)],
        "extra": (torch.tensor(0.25), "add"),
    }
    return (batch,), {}


def keyword_input(size: int = 4) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (), {"right": torch.randn(size, 3, 9, 9), "left": torch.randn(size, 3, 9, 9)}


KINDS: dict[str, tuple[type[nn.Module], Any]] = {
    "tokens and a mask": (Tagger, tagger_input),
    "nested": (Nested, nested_input),
    "keywords": (Keywords, keyword_input),
}


def example_input(arguments: tuple[tuple[Any, ...], dict[str, Any]], network: nn.Module) -> Any:
    """Return arguments as the functions of the package take them: by position or by keyword."""
    positional, keywords = arguments
    if not keywords:
        return positional
    return {**dict(zip(("tokens",), positional, strict=False)), **keywords}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_network_of_any_inputs_is_compacted_exported_and_read(
    tmp_path: Path, kind: str, name: str
) -> None:
    torch.manual_seed(0)
    make, arguments = KINDS[kind]
    network = make().eval()
    example = example_input(arguments(), network)
    masks = prune(network, SynFlow(), density=0.3, example_input=example)
    small = compact(network, masks, example_input=example).eval()
    assert sum(x.numel() for x in small.parameters()) < sum(x.numel() for x in network.parameters())
    metadata = TensorMetadata.of(network, example, properties={"density": 0.3})
    path = tmp_path / f"model.{name}"
    assert export(small, network, metadata, path, example) < 1e-5
    exported = load_exported(path, trust=True, network=make())
    assert exported.metadata == metadata
    for size in (1, 7):
        positional, keywords = arguments(size)
        with torch.no_grad():
            right = network(*positional, **keywords)
        given = exported(*positional, **keywords)
        torch.testing.assert_close(given, right, rtol=1e-4, atol=1e-5)
    card = write_card(tmp_path / "model", metadata, {name: 0.0}).read_text()
    assert f"- input {metadata.inputs[0]}" in card
    assert "- density: 0.3" in card


def test_arguments_by_position_and_by_keyword_are_the_same(tmp_path: Path) -> None:
    network = Keywords().eval()
    _, keywords = keyword_input()
    metadata = TensorMetadata.of(network, keywords)
    export(network, network, metadata, tmp_path / "a.pt2", keywords)
    exported = load_exported(tmp_path / "a.pt2", trust=True)
    by_position = exported(keywords["left"], keywords["right"])
    assert torch.equal(by_position, exported(**keywords))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 2.0}, "^scale: 2.0, and the file was written for 0.5$"),
        ({"causal": 1}, "^causal: 1, and the file was written for True$"),
        ({"tokens": torch.zeros(2, 7).long()}, r"^tokens: \(2, 7\) of int64, expected tokens \('N"),
        ({"mask": torch.ones(6, 6)}, r"^mask: \(6, 6\) of float32, expected mask \(6, 6\) of bool"),
        ({"mask": 3}, "^mask: 3, expected a tensor$"),
        ({"more": 3}, "^arguments: tokens, mask, scale, causal, more, expected tokens, mask, "),
    ],
    ids=range(6),
)
def test_arguments_that_differ_from_the_example_are_an_error(
    change: dict[str, Any], message: str
) -> None:
    network = Tagger()
    (tokens,), keywords = tagger_input()
    arguments = {"tokens": tokens, **keywords}
    metadata = TensorMetadata.of(network, arguments)
    metadata.tensors(**arguments)
    with pytest.raises(ValueError, match=message):
        metadata.tensors(**{**arguments, **change})


def test_batches_of_different_sizes_and_other_containers_are_an_error() -> None:
    metadata = TensorMetadata.of(Nested(), nested_input()[0])
    (batch,), _ = nested_input()
    batch["features"][1] = torch.randn(3, 6)
    with pytest.raises(ValueError, match=r"^inputs: their batches have the sizes \[3, 4\]$"):
        metadata.tensors(batch)
    batch["features"] = tuple(batch["features"])
    with pytest.raises(ValueError, match=r"^batch.features: a tuple, expected a list of 2$"):
        metadata.tensors(batch)
    del batch["features"]
    with pytest.raises(ValueError, match=r"^batch: a dict, expected a dict with features, extra$"):
        metadata.tensors(batch)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return functional.linear(shift @ x, self.head.weight)


def test_a_tensor_whose_size_is_the_batchs_by_chance_can_be_fixed() -> None:
    """The batch has two sequences of two steps, and the matrix between steps is 2 x 2."""
    example = (torch.randn(2, 2, 4), torch.randn(2, 2))
    inputs = TensorMetadata.of(Masked(), example, fixed=["shift"]).inputs
    assert [tensor.batched for tensor in inputs] == [True, False]
    with pytest.raises(ValueError, match=r"^fixed: 'y' is none of the tensors x, shift$"):
        TensorMetadata.of(Masked(), example, fixed=["y"])


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.randn(1, 4), "its batch has one example, expected at least two"),
        ({"input": torch.randn(3, 4), "name": {1, 2}}, "name is a set, which cannot be written"),
    ],
    ids=["one example", "set"],
)
def test_an_example_that_cannot_be_described_is_an_error(example: Any, message: str) -> None:
    class Named(nn.Linear):
        def forward(self, input: Tensor, name: Any = None) -> Tensor:
            return super().forward(input)

    with pytest.raises(ValueError, match=message):
        TensorMetadata.of(Named(4, 2), example)


def test_describing_a_network_leaves_its_mode_and_statistics() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    TensorMetadata.of(network, torch.randn(5, 4))
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_damaged_descriptions_are_an_error(tmp_path: Path) -> None:
    from dataclasses import replace

    network = Keywords().eval()
    metadata = TensorMetadata.of(network, keyword_input()[1])
    wrong = replace(metadata, inputs=(replace(metadata.inputs[0], dtype="float33"),))
    FORMATS["safetensors"](network, wrong, tmp_path / "a.safetensors", keyword_input()[1])
    with pytest.raises(ValueError, match=r"cannot be read \(dtype: 'float33'\); export it anew"):
        load_exported(tmp_path / "a.safetensors", network=network)
    other = replace(metadata, output_shape=(9,))
    FORMATS["safetensors"](network, other, tmp_path / "b.safetensors", keyword_input()[1])
    with pytest.raises(
        ValueError, match=r"gives \(2, 4\) for inputs of zeros, and says that it gives \(2, 9\)"
    ):
        load_exported(tmp_path / "b.safetensors", network=network)
