"""Every parameter that acts on the signal in a contraction is pruned, whichever class owns it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from synflow_pl import Masks, compact, diagnose, prune
from synflow_pl.flow import acting_parameters, trace
from synflow_pl.graph.network_copy import duplicate
from synflow_pl.pruners import (
    FORCE,
    LAMP,
    NTKSAP,
    PHEW,
    SNIP,
    GraSP,
    Magnitude,
    Pruner,
    Random,
    SynFlow,
    SynFlowL2,
)
from tests.acting_networks import NETWORKS, Experts, InputsFirst, build, parameter, wrapped

PRUNERS: list[Callable[[], Pruner]] = [
    SynFlow,
    SynFlowL2,
    Magnitude,
    Random,
    LAMP,
    NTKSAP,
    SNIP,
    GraSP,
    FORCE,
]


@pytest.mark.parametrize("name", NETWORKS)
def test_acting_parameters_are_found(name: str) -> None:
    network, example = build(name)
    assert acting_parameters(network, trace(network, (example,))) == NETWORKS[name][2]


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_density_is_exact_over_all_acting_parameters(
    name: str, pruner: Callable[[], Pruner]
) -> None:
    if name == "deformable" and pruner is GraSP:
        pytest.skip("torchvision's deformable convolution has no second derivative")
    network, example = build(name)
    outputs = network(example).shape[-1]
    batches = [(torch.randn(8, *example.shape[1:]), torch.randint(outputs, (8,)))]
    loss: Any = lambda logits, labels: functional.cross_entropy(  # noqa: E731
        logits.flatten(0, -2), labels.repeat_interleave(logits[0].numel() // outputs)
    )
    total = sum(network.get_parameter(name).numel() for name in NETWORKS[name][2]) + sum(
        module.weight.numel()
        for module in network.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv1d)) and "weight" in module._parameters
    )
    masks = prune(
        network,
        pruner(),
        density=0.4,
        rounds=3,
        example_input=example,
        batches=batches,
        loss=loss,
        on_collapse="ignore",
    )
    assert masks.total == total
    assert masks.kept == total - math.floor(0.6 * total)
    for weight, mask in masks.parameters(network):
        assert not bool(weight[~mask].any())


@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_weights_stay_zero_in_training(name: str) -> None:
    network, example = build(name)
    masks = prune(network, Magnitude(), density=0.4, example_input=example, on_collapse="ignore")
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.1)
    hold = masks.hold(network, optimizer)
    network.train()
    data = torch.randn(4, *example.shape[1:])
    for _ in range(50):
        optimizer.zero_grad()
        network(data).square().mean().backward()
        optimizer.step()
    hold.remove()
    for weight, mask in masks.parameters(network):
        assert not bool(weight[~mask].any())
        assert bool(weight[mask].any()) == bool(mask.any())


@pytest.mark.parametrize("name", NETWORKS)
def test_synflow_leaves_a_path_and_compaction_keeps_the_function(name: str) -> None:
    network, example = build(name)
    masks = prune(network, SynFlow(), density=0.3, example_input=example, on_collapse="error")
    diagnosis = diagnose(network, masks, example_input=example)
    assert diagnosis.alive
    assert 0 < diagnosis.effective <= diagnosis.kept == masks.kept
    small = compact(network, masks, example).eval()
    torch.testing.assert_close(small(example), network(example), rtol=1e-4, atol=1e-5)


def without_gates(name: str) -> bool:
    """Return whether nothing in a network but ReLU lies between its products."""
    return name in ("functional", "einsum", "functional convolution", "graph", "masked", "RNN 1")


@pytest.mark.parametrize("name", [name for name in NETWORKS if without_gates(name)])
def test_synflow_scores_are_the_derivatives_of_the_positive_network(name: str) -> None:
    """In a ReLU network, R is the sum of the outputs with |w| for every weight and input ones."""
    network, example = build(name)
    network = network.double()
    for key, value in network.named_parameters():
        if "bias" in key:
            value.data.zero_()
    scores: dict[str, Tensor] = {}

    class Watching(SynFlow):
        def score(self, state: Any) -> Any:
            found = super().score(state)
            scores.update(
                {
                    name: (score.weight * score.gradient if isinstance(score, tuple) else score)
                    .detach()
                    .clone()
                    for name, score in found.items()
                }
            )
            return found

    prune(
        duplicate(network),
        Watching(),
        density=0.5,
        rounds=1,
        example_input=example.double(),
        on_collapse="ignore",
    )
    positive = duplicate(network)
    with torch.no_grad():
        for value in positive.parameters():
            value.abs_()
    positive(torch.ones_like(example.double())).sum().backward()
    ratio = None
    for key, score in scores.items():
        weight = positive.get_parameter(key)
        expected = weight.detach() * weight.grad
        largest = score.flatten().argmax()
        ratio = ratio or float(expected.flatten()[largest] / score.flatten()[largest])
        torch.testing.assert_close(score * ratio, expected)


COMPUTED = ("parametrizations.weight.original", "weight")


@pytest.mark.parametrize("name", NETWORKS)
def test_effective_weights_are_those_whose_removal_changes_a_random_network(name: str) -> None:
    """A kept weight is effective if the output depends on it, for almost all values of weights."""
    network, example = build(name)
    masks = prune(network, Random(), density=0.5, example_input=example, on_collapse="ignore")
    diagnosis = diagnose(network, masks, example_input=example)
    network = network.double()
    if name == "spectral norm":  # the norm depends on every weight, whether it is on a path or not
        for layer in (network.get_submodule("1"), network.get_submodule("4")):
            parametrize.remove_parametrizations(layer, "weight")
        masks = Masks({key.replace(*COMPUTED): mask for key, mask in masks.items()})
    generator = torch.Generator().manual_seed(3)
    depends = {key: torch.zeros_like(mask) for key, mask in masks.items()}
    for _ in range(3):
        with torch.no_grad():
            for key, value in network.named_parameters():
                drawn = 0.1 + torch.rand(value.shape, generator=generator, dtype=torch.float64)
                if key.startswith("offset"):
                    drawn *= 0.01  # positions stay inside the image
                value.copy_(drawn * masks[key] if key in masks else drawn)
        network.zero_grad()
        inputs = torch.rand(1, *example.shape[1:], generator=generator, dtype=torch.float64)
        one, other = network(inputs.requires_grad_()), network(2 * inputs)
        (one - other).square().sum().backward()
        for key in masks:
            gradient = network.get_parameter(key).grad
            depends[key] |= masks[key] & (gradient.abs() > 1e-12)
    kept = {layer.name.replace(*COMPUTED): layer.effective for layer in diagnosis.layers}
    assert kept == {key: int(on.count_nonzero()) for key, on in depends.items()}


class Left(nn.Module):
    """Parameters that do not act on the signal in a contraction, and factors of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 6)
        self.position, self.gain = parameter(5, 6), parameter(1, 6)
        self.layer = nn.Linear(6, 6)
        self.up, self.down = parameter(6, 2), parameter(2, 6)
        self.centred = parameter(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = (self.words(x) + self.position) * self.gain
        hidden = functional.linear(hidden, self.layer.weight + self.up @ self.down)
        return hidden @ (self.centred - self.centred.mean(0))


def test_tables_gains_factors_and_standardised_weights_stay_dense_and_are_named() -> None:
    network, example, pruner = Left(), torch.randint(9, (1, 5)), Magnitude()
    masks = prune(network, pruner, density=0.5, example_input=example, on_collapse="ignore")
    assert list(masks) == ["layer.weight"]
    assert "take no part and stay dense: Left (Left, " in pruner.notes[-1]
    assert "words (Embedding, 54)" in pruner.notes[-1]


def test_include_and_exclude_name_parameters_by_pattern_and_class() -> None:
    example = torch.randint(9, (1, 5))
    options: Any = {"density": 0.5, "example_input": example, "on_collapse": "ignore"}
    names = [
        list(prune(Left(), Magnitude(), **options, **chosen))
        for chosen in (
            {"include": [nn.Embedding]},
            {"include": ["posit*", "up"]},
            {"include": nn.Embedding, "exclude": ["layer.*"]},
            {"include": "words.weight", "exclude": [nn.Linear]},
        )
    ]
    assert names == [
        ["words.weight", "layer.weight"],
        ["position", "up", "layer.weight"],
        ["words.weight"],
        ["words.weight"],
    ]
    for option, item in itertools.product(("include", "exclude"), (["no*"], [nn.Conv3d])):
        with pytest.raises(ValueError, match=f"^{option}: .* matches no .*parameter; the nearest"):
            prune(Left(), Magnitude(), **options, **{option: item})


def test_a_normalised_weight_stays_dense_and_is_named() -> None:
    """A unit without kept weights would be divided by its norm, which is zero."""
    network, pruner = wrapped(parametrizations.weight_norm), Magnitude()
    masks = prune(network, pruner, density=0.5, input_shape=(6,))
    assert list(masks) == ["6.weight"]
    assert "1 (Conv1d, parametrised, 30), 4 (Linear, parametrised, 182)" in pruner.notes[-1]


def test_without_an_example_only_known_layers_are_pruned_and_others_are_named() -> None:
    network, pruner = Experts(), Magnitude()
    assert list(prune(network, pruner, density=0.5)) == ["router.weight"]
    assert "Experts (Experts, 240)" in pruner.notes[-1]


def test_phew_refuses_a_weight_that_is_no_layer() -> None:
    network, example = build("experts")
    with pytest.raises(ValueError, match=r"PHEW walks from unit to unit .* up, down belongs to no"):
        prune(network, PHEW(), density=0.5, example_input=example)


def test_units_and_inputs_of_a_matrix_with_inputs_first_are_counted() -> None:
    network = nn.Sequential(InputsFirst(4, 3), nn.ReLU(), nn.Linear(3, 2))
    masks = prune(
        network, Random(), density=1.0, example_input=torch.ones(1, 4), on_collapse="ignore"
    )
    masks["0.weight"][:, 0] = False
    masks["0.weight"][1] = False
    layer = diagnose(network, masks, example_input=torch.ones(1, 4)).layers[0]
    assert (layer.units, layer.living_units) == (3, 2)
    assert (layer.inputs, layer.living_inputs) == (4, 3)


def test_a_linear_layer_whose_weight_is_also_read_untransposed_keeps_its_units() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.encode(x).relu() @ self.encode.weight

    network, example = Tied(), torch.ones(1, 4)
    masks = prune(network, Magnitude(), density=1.0, example_input=example)
    layer = diagnose(network, masks, example_input=example).layers[0]
    assert (layer.units, layer.inputs) == (3, 4)


@pytest.mark.parametrize("pruner", [Magnitude, SNIP])
def test_a_network_that_cannot_be_traced_is_pruned_by_class_with_a_note(
    pruner: Callable[[], Pruner],
) -> None:
    class Refusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.own = nn.Linear(6, 6), parameter(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                raise RuntimeError("no gradients, no outputs")
            return self.layer(x) @ self.own

    chosen = pruner()
    masks = prune(
        Refusing(),
        chosen,
        density=0.5,
        example_input=torch.ones(1, 6),
        batches=[(torch.randn(8, 6), torch.randint(3, (8,)))],
        on_collapse="ignore",
    )
    assert list(masks) == ["layer.weight"]
    assert "could not be seen: Refusing fails on an input" in chosen.notes[-1]
