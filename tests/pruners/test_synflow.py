from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.zoo import ZOO
from synflow_pl import prune
from synflow_pl.flow import example_of, path_left
from synflow_pl.networks import FC, VGG
from synflow_pl.pruners import Saliency, Subject, SynFlow
from tests import textbook
from tests.conftest import intersection_over_union


def test_the_last_weight_of_a_layer_is_never_the_one_to_go() -> None:
    # One weight per layer is the least that leaves a path; SynFlow gets there, given enough rounds.
    network = FC((1, 4, 4), depth=5, width=12)
    masks = prune(network, SynFlow(), kept=5, rounds=300, input_shape=(1, 4, 4))
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1, 1, 1, 1]
    assert path_left(network, masks, example_of(network, (1, 4, 4), None))


def test_masks_do_not_depend_on_the_weights_signs_or_scale_or_on_biases() -> None:
    torch.manual_seed(0)
    network = FC(depth=3)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    expected = prune(network, SynFlow(), density=0.05, rounds=10, input_shape=(1, 28, 28))
    changed = {name: -tensor * 4 if name.endswith("weight") else torch.randn_like(tensor) for name, tensor in state.items()}
    network.load_state_dict(changed)
    found = prune(network, SynFlow(), density=0.05, rounds=10, input_shape=(1, 28, 28))
    assert all(torch.equal(mask, expected[name]) for name, mask in found.items())


def test_a_score_that_is_not_finite_is_an_error_that_names_the_layer_and_leaves_the_network() -> None:
    network = FC(depth=3)
    network.layers[3].weight.data[0, 0] = float("inf")
    before = [parameter.clone() for parameter in network.parameters()]
    with pytest.raises(FloatingPointError, match=r"the scores of 'layers\.\d\.weight' are not finite"):
        prune(network, SynFlow(), density=0.1, input_shape=(1, 28, 28))
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def test_a_weight_without_flow_is_an_error_that_says_what_to_do() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, signal: Tensor) -> Tensor:
            return self.used(signal)

    with pytest.raises(ValueError, match=r"no flow passes through 'idle\.weight'; leave it dense with exclude=\['idle\.weight'\]"):
        prune(Idle(), SynFlow(), density=0.5, input_shape=(2,))
    assert prune(Idle(), SynFlow(), density=0.5, input_shape=(2,), exclude=["idle.*"]).kept == 2


def test_excluded_layers_carry_flow_and_stay_dense() -> None:
    network = FC(depth=3)
    masks = prune(network, SynFlow(), density=0.1, rounds=5, input_shape=(1, 28, 28), exclude=["layers.5.*"])
    assert list(masks) == ["layers.1.weight", "layers.3.weight"]
    assert network.layers[5].weight.all()


@pytest.mark.parametrize("name", ["fc", "resnet20"])
def test_working_on_living_blocks_changes_no_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, shape = ZOO[name]
    network = build().double()
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    blocks: list[int] = []

    class Watched(SynFlow):
        def score(self, subject: Subject) -> dict[str, Saliency]:
            blocks.append(sum(weight.numel() for weight in subject.weights.values()))
            return super().score(subject)

    fast = prune(network, Watched(), density=0.01, input_shape=shape)
    assert blocks[-1] < blocks[0] / 4  # dead units were left out
    network.load_state_dict(state)
    monkeypatch.setattr("synflow_pl.pruning._Ranking._BLOCK_AT", 0.0)
    blocks.clear()
    plain = prune(network, Watched(), density=0.01, input_shape=shape)
    assert blocks[-1] == blocks[0]
    assert all(torch.equal(fast[layer], plain[layer]) for layer in plain)


QUICK = ("fc", "resnet20", "resnet20_gains")


@pytest.mark.parametrize("density", [0.1, 0.01])
@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ZOO])
def test_a_path_is_left_in_every_network_of_the_zoo(name: str, density: float) -> None:
    build, shape = ZOO[name]
    network = build()
    # A score that is not finite would be an error.
    masks = prune(network, SynFlow(), density=density, rounds=100, input_shape=shape)
    assert masks.kept == -int(-round(density * 100) * masks.total // 100)
    assert path_left(network, masks, example_of(network, shape, None))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg11", "resnet18"])
def test_masks_of_large_networks_are_the_textbooks(name: str) -> None:
    torch.manual_seed(0)
    network, shape = (VGG(11), (3, 32, 32)) if name == "vgg11" else (torchvision.models.resnet18(num_classes=10), (3, 64, 64))
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    single = prune(network, SynFlow(), density=0.01, rounds=100, input_shape=shape)
    network.load_state_dict(state)
    network.double()
    expected = textbook.prune(network, shape, 0.01, 100)
    double = prune(network, SynFlow(), density=0.01, rounds=100, input_shape=shape)
    assert intersection_over_union(dict(double), expected) >= 0.999
    # In float32 masks of networks this large are chaotic, so what is compared is how many weights each layer keeps. Where a layer
    # keeps only a few, one weight more or less is the finest difference there is.
    for layer, mask in expected.items():
        assert abs(int(single[layer].sum()) - int(mask.sum())) <= max(0.03 * int(mask.sum()), 1), layer
