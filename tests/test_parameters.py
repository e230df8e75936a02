"""Networks and inputs that are an error, and parameters that take no part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.nn.utils import prune as torch_prune

from synflow_pl import diagnose, prune
from synflow_pl.pruners import Magnitude, SynFlow


def mlp(**options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16, **options), nn.ReLU(), nn.Linear(16, 4, **options))


def inference() -> nn.Module:
    with torch.inference_mode():
        return mlp()


@pytest.mark.parametrize("pruner", [SynFlow, Magnitude])
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: "resnet18", TypeError, "expected a torch.nn.Module, got str"),
        (
            lambda: nn.DataParallel(mlp()),
            TypeError,
            "the network is wrapped in DataParallel; prune the module inside it",
        ),
        (
            lambda: nn.Sequential(nn.DataParallel(mlp())),
            TypeError,
            "the module '0' is wrapped in DataParallel",
        ),
        (lambda: torch.jit.script(mlp()), TypeError, "the network is TorchScript"),
        (lambda: torch.jit.trace(mlp(), torch.ones(1, 8)), TypeError, "the network is TorchScript"),
        (
            lambda: nn.Sequential(nn.Linear(8, 8), torch.jit.script(mlp())),
            TypeError,
            "the module '1' is TorchScript",
        ),
        (inference, ValueError, "'0.weight' was made in inference mode"),
        (lambda: mlp(device="meta"), ValueError, "'0.weight' is on the meta device"),
        (lambda: nn.Sequential(nn.LazyLinear(4)), ValueError, "'0.weight' is lazy"),
        (lambda: mlp(dtype=torch.cfloat), ValueError, "'0.weight' holds complex numbers"),
    ],
)
def test_a_network_that_cannot_be_pruned_is_an_error_of_one_sentence(
    make: Callable[[], Any], error: type[Exception], message: str, pruner: type[Any]
) -> None:
    with pytest.raises(error, match=message) as caught:
        prune(make(), pruner(), density=0.5, rounds=1, input_shape=(8,))
    assert "\n" not in str(caught.value)


class Scaled(nn.Module):
    """Network whose first parameter does not hold floating-point numbers."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale, self.body = nn.Parameter(scale, requires_grad=False), mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.scale.abs()


@pytest.mark.parametrize(
    "scale", [torch.tensor([3]), torch.tensor([True]).to(torch.uint8), torch.tensor([1j])]
)
def test_the_input_has_the_dtype_of_the_first_floating_point_parameter(scale: Tensor) -> None:
    network = Scaled(scale)
    masks = prune(network, SynFlow(), density=0.5, rounds=2, input_shape=(8,))
    assert masks.kept == masks.total // 2


@pytest.mark.parametrize("example", [3, None, "image", {1: torch.ones(1, 8)}])
def test_an_example_input_of_another_kind_is_an_error(example: Any) -> None:
    network = mlp()
    masks = prune(mlp(), Magnitude(), density=0.5)
    kind, message = (
        (ValueError, "^give either input_shape.* or example_input=")
        if example is None
        else (TypeError, "^example_input: expected a tensor, got a .*; give a tensor, a tuple of")
    )
    with pytest.raises(kind, match=message):
        prune(network, SynFlow(), density=0.5, example_input=example)
    with pytest.raises(kind, match=message):
        diagnose(network, masks, example_input=example)


@pytest.mark.parametrize("example", [(), {}, (None, 0.5), ({"x": "words"},)])
def test_an_example_input_without_a_tensor_is_an_error(example: Any) -> None:
    with pytest.raises(ValueError, match="example_input: there is no tensor in it"):
        prune(mlp(), SynFlow(), density=0.5, rounds=1, example_input=example)


def test_a_list_of_tensors_gives_the_positional_arguments_of_forward() -> None:
    assert (
        prune(mlp(), SynFlow(), density=0.5, rounds=1, example_input=[torch.ones(1, 8)]).kept == 96
    )


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 4)), (5,)),
        (mlp(), (9,)),
        (nn.Conv2d(3, 4, 3), (1, 8, 8)),
    ],
)
def test_an_input_on_which_forward_fails_is_an_error_that_quotes_the_reason(
    network: nn.Module, shape: tuple[int, ...]
) -> None:
    with pytest.raises(
        ValueError,
        match=rf"fails on an input of \(1, {shape[0]}.* float32 \(RuntimeError: .*give the"
        " example_input",
    ):
        prune(network, SynFlow(), density=0.5, rounds=1, input_shape=shape)


class Temporal(nn.Module):
    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.early, self.last = wrap(nn.Conv1d(3, 8, 3)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.early(x)).mean(-1))


@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.weight_norm,
        parametrizations.orthogonal,
        nn.utils.weight_norm,
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_note_names_parametrised_layers_as_dense(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    network, pruner = Temporal(wrap), SynFlow()
    masks = prune(network, pruner, density=0.5, rounds=2, input_shape=(3, 6))
    assert list(masks) == ["last.weight"]
    (note,) = (note for note in pruner.notes if "take no part and stay dense" in note)
    assert "early (Conv1d" in note
    diagnosis = diagnose(network, masks, input_shape=(3, 6))
    assert set(diagnosis.left_out) == {"early", "last"}
    assert sum(diagnosis.left_out.values()) == sum(p.numel() for p in network.parameters()) - 40


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (parametrizations.spectral_norm, "early.parametrizations.weight.original"),
        (spectral_norm, "early.weight_orig"),
        (lambda layer: torch_prune.l1_unstructured(layer, "weight", 0.5), "early.weight_orig"),
    ],
)
def test_a_weight_whose_zeros_stay_zero_is_pruned_where_it_is_computed_from(
    wrap: Callable[[nn.Module], nn.Module], name: str
) -> None:
    network, pruner = Temporal(wrap), SynFlow()
    masks = prune(network, pruner, density=0.5, rounds=2, input_shape=(3, 6))
    assert set(masks) == {name, "last.weight"}
    assert not any("take no part and stay dense" in note for note in pruner.notes)
    network(torch.ones(1, 3, 6))
    assert not bool(network.early.weight[~masks[name]].any())


class Own(nn.Module):
    """Layer with a table of factors under its own name."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.ones(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors


def test_a_note_names_layers_of_other_classes_and_their_sizes() -> None:
    network = nn.ModuleDict(
        {
            "rnn": nn.LSTM(8, 8, batch_first=True),
            "own": Own(),
            "norm": nn.LayerNorm(8),
            "last": nn.Linear(8, 4),
        }
    )

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = network

        def forward(self, x: Tensor) -> Tensor:
            return network["last"](network["norm"](network["own"](network["rnn"](x)[0])))

    tagger, pruner = Tagger(), SynFlow()
    masks = prune(tagger, pruner, density=0.5, rounds=2, input_shape=(5, 8))
    note = (
        "124 of 668 parameters take no part and stay dense: parts.own (Own, 40), biases, gains and"
        " shifts (84)"
    )
    assert pruner.notes[-1] == note
    diagnosis = diagnose(tagger, masks, input_shape=(5, 8))
    assert note in diagnosis.notes
    assert diagnosis.left_out == {
        "parts.rnn": 64,
        "parts.own": 40,
        "parts.norm": 16,
        "parts.last": 4,
    }


def test_biases_and_normalisations_are_counted_in_the_diagnosis_and_not_noted_by_the_pruner() -> (
    None
):
    network, pruner = (
        nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False)),
        SynFlow(),
    )
    masks = prune(network, pruner, density=0.5, rounds=2, input_shape=(8,))
    assert pruner.notes == ()
    assert (
        "12 of 52 parameters take no part and stay dense: biases, gains and shifts (12)"
        in diagnose(network, masks, input_shape=(8,)).notes
    )
    masked = prune(
        network, pruner, density=0.5, rounds=2, input_shape=(8,), mask_bias=True, mask_norm=True
    )
    assert diagnose(network, masked, input_shape=(8,)).left_out == {}
