from __future__ import annotations

from fractions import Fraction
from typing import Literal

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.zoo import ZOO
from synflow_pl import prune
from synflow_pl.flow import example_of, is_connected
from synflow_pl.networks import FC, VGG
from synflow_pl.pruners import PruningState, Saliency, SynFlow
from synflow_pl.schedules import kept_weights
from tests import textbook
from tests.conftest import intersection_over_union


def test_synflow_never_removes_the_last_weight_of_a_layer_first() -> None:
    # A path has at least one weight per layer; with enough rounds SynFlow keeps exactly one.
    network = FC((1, 4, 4), depth=5, width=12)
    masks = prune(network, SynFlow(), num_kept=5, rounds=300, input_shape=(1, 4, 4))
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1, 1, 1, 1]
    assert is_connected(network, masks, example_of(network, (1, 4, 4), None))


def test_masks_of_synflow_do_not_depend_on_signs_scale_or_biases() -> None:
    torch.manual_seed(0)
    network = FC(depth=3)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    expected = prune(network, SynFlow(), density=0.05, rounds=10, input_shape=(1, 28, 28))
    changed = {
        name: -tensor * 4 if name.endswith("weight") else torch.randn_like(tensor)
        for name, tensor in state.items()
    }
    network.load_state_dict(changed)
    found = prune(network, SynFlow(), density=0.05, rounds=10, input_shape=(1, 28, 28))
    assert all(torch.equal(mask, expected[name]) for name, mask in found.items())


def test_a_score_that_is_not_finite_is_an_error_and_leaves_the_network_dense() -> None:
    network = FC(depth=3)
    network.layers[3].weight.data[0, 0] = float("inf")
    before = [parameter.clone() for parameter in network.parameters()]
    with pytest.raises(
        FloatingPointError, match=r"the scores of 'layers\.\d\.weight' are not finite"
    ):
        prune(network, SynFlow(), density=0.1, input_shape=(1, 28, 28))
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def test_a_layer_without_flow_is_pruned_by_magnitude_at_the_same_density_and_noted() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, signal: Tensor) -> Tensor:
            return self.used(signal)

    network, pruner = Idle(), SynFlow()
    network.idle.weight.data = torch.tensor([[1.0, -8.0, 2.0, 3.0], [-7.0, 4.0, 5.0, -6.0]])
    masks = prune(network, pruner, density=0.25, input_shape=(4,))
    assert int(masks["used.weight"].sum()) == 2
    assert masks["idle.weight"].tolist() == [
        [False, True, False, False],
        [True, False, False, False],
    ]
    (note,) = pruner.notes
    assert note.endswith(": idle.weight")


class Attentive(nn.Module):
    """Network with fused attention, followed by squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.squeeze, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.attention(tokens, tokens, tokens)[0].mean(1)
        return self.head(mixed * self.squeeze(mixed).sigmoid())


def test_synflow_prunes_queries_and_keys_by_magnitude_and_values_by_flow() -> None:
    network, pruner = Attentive(), SynFlow()
    weight = network.attention.in_proj_weight.detach().abs()
    masks = prune(network, pruner, density=0.25, rounds=20, input_shape=(3, 8))
    rows = masks["attention.in_proj_weight"]
    # Queries and keys have 128 weights and the gate has 64; the largest quarter of each is kept.
    assert int(rows[:16].sum()) == 32
    assert weight[:16][rows[:16]].min() > weight[:16][~rows[:16]].max()
    assert int(masks["squeeze.weight"].sum()) == 16
    assert masks.kept == 88  # of 3 * 64 + 64 + 64 + 32
    whole, part = pruner.notes
    assert whole.endswith(": squeeze.weight")
    assert part.endswith(": attention.in_proj_weight")


@pytest.mark.parametrize("scope", ["global", "local"])
@settings(max_examples=30, deadline=None)
@given(density=st.fractions(Fraction(1, 400), 1), rounds=st.integers(1, 6))
def test_density_is_exact_if_weights_are_ranked_separately(
    scope: Literal["global", "local"], density: Fraction, rounds: int
) -> None:
    masks = prune(
        Attentive(),
        SynFlow(),
        density=density,
        rounds=rounds,
        scope=scope,
        input_shape=(3, 8),
        on_collapse="ignore",
    )
    if scope == "global":
        assert masks.kept == kept_weights(masks.total, density)
    else:
        assert all(
            int(mask.sum()) == kept_weights(mask.numel(), density) for mask in masks.values()
        )


def test_units_of_a_gate_after_a_transposed_convolution_are_ranked_separately() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2, bias=False)

        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.glu(self.up(images), 1)

    seen: dict[str, Tensor] = {}

    class Recording(SynFlow):
        def prepare(self, state: PruningState) -> None:
            super().prepare(state)
            seen.update(state.ranked_separately)

    prune(Gated(), Recording(), density=0.5, rounds=1, input_shape=(4, 2, 2))
    # The gate consists of units 2 and 3, which are the second group and read inputs 2 and 3.
    assert seen["up.weight"].flatten(1).all(1).tolist() == [False, False, True, True]
    assert not seen["up.weight"][:2].any()


def test_a_head_initialised_to_zero_counts_as_ones_and_is_noted() -> None:
    network, pruner = FC((1, 4, 4), depth=3, width=8), SynFlow()
    nn.init.zeros_(network.layers[5].weight)
    masks = prune(network, pruner, density=0.1, rounds=20, input_shape=(1, 4, 4))
    assert pruner.notes == ("zero throughout, so counted as ones: layers.5.weight",)
    assert is_connected(network, masks, example_of(network, (1, 4, 4), None))
    assert not network.layers[5].weight.any()


def test_excluded_layers_stay_dense_and_carry_flow() -> None:
    network = FC(depth=3)
    masks = prune(
        network, SynFlow(), density=0.1, rounds=5, input_shape=(1, 28, 28), exclude=["layers.5.*"]
    )
    assert list(masks) == ["layers.1.weight", "layers.3.weight"]
    assert network.layers[5].weight.all()


@pytest.mark.parametrize("name", ["fc", "resnet20"])
def test_shrinking_weights_to_blocks_does_not_change_the_masks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, shape = ZOO[name]
    network = build().double()
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    blocks: list[int] = []

    class Recording(SynFlow):
        def score(self, state: PruningState) -> dict[str, Saliency]:
            blocks.append(sum(weight.numel() for weight in state.weights.values()))
            return super().score(state)

    fast = prune(network, Recording(), density=0.01, input_shape=shape)
    assert blocks[-1] < blocks[0] / 4  # weights of dead units are left out
    network.load_state_dict(state)
    monkeypatch.setattr("synflow_pl.selection.PruningGroup._BLOCK_DENSITY", 0.0)
    blocks.clear()
    plain = prune(network, Recording(), density=0.01, input_shape=shape)
    assert blocks[-1] == blocks[0]
    assert all(torch.equal(fast[layer], plain[layer]) for layer in plain)


QUICK = ("fc", "resnet20", "resnet20_gains")


@pytest.mark.parametrize("density", [0.1, 0.01])
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ZOO]
)
def test_synflow_leaves_every_network_of_the_zoo_connected(name: str, density: float) -> None:
    build, shape = ZOO[name]
    network = build()
    # A score that is not finite would be an error.
    masks = prune(network, SynFlow(), density=density, rounds=100, input_shape=shape)
    assert masks.kept == -int(-round(density * 100) * masks.total // 100)
    assert is_connected(network, masks, example_of(network, shape, None))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg11", "resnet18"])
def test_masks_of_large_networks_equal_those_of_the_textbook_implementation(name: str) -> None:
    torch.manual_seed(0)
    network, shape = (
        (VGG(11), (3, 32, 32))
        if name == "vgg11"
        else (torchvision.models.resnet18(num_classes=10), (3, 64, 64))
    )
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    single = prune(network, SynFlow(), density=0.01, rounds=100, input_shape=shape)
    network.load_state_dict(state)
    network.double()
    expected = textbook.prune(network, shape, 0.01, 100)
    double = prune(network, SynFlow(), density=0.01, rounds=100, input_shape=shape)
    assert intersection_over_union(dict(double), expected) >= 0.999
    # In float32 masks of networks this large are chaotic, so only the number of weights kept in
    # each layer is compared. A difference of one weight is allowed in layers that keep only a few.
    for layer, mask in expected.items():
        assert abs(int(single[layer].sum()) - int(mask.sum())) <= max(0.03 * int(mask.sum()), 1), (
            layer
        )
