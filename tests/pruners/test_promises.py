"""What every pruner of the package promises; they are found here, not listed."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import synflow_pl.pruners
from synflow_pl import prune
from synflow_pl.networks import FC, ResNet
from synflow_pl.pruners import Pruner, Subject
from synflow_pl.schedules import kept_weights

PRUNERS = [
    value
    for name in synflow_pl.pruners.__all__
    if isinstance(value := getattr(synflow_pl.pruners, name), type) and issubclass(value, Pruner) and value is not Pruner
]
each_pruner = pytest.mark.parametrize("pruner", PRUNERS, ids=lambda pruner: pruner.__name__)


def network(width: int = 6, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return FC((1, 3, 3), num_classes=4, depth=4, width=width)


def masks_of(pruner: type[Pruner], **options: object) -> synflow_pl.Masks:
    found: synflow_pl.Masks = prune(network(), pruner(), input_shape=(1, 3, 3), **options)  # type: ignore[arg-type]
    return found


def test_there_are_pruners() -> None:
    assert len(PRUNERS) >= 3


@each_pruner
@settings(max_examples=50, deadline=None)
@given(width=st.integers(1, 9), density=st.fractions(Fraction(1, 1000), 1), rounds=st.integers(1, 5))
def test_density_is_exact_for_every_size_and_density(pruner: type[Pruner], width: int, density: Fraction, rounds: int) -> None:
    subject = network(width)
    masks = prune(subject, pruner(), density=density, rounds=rounds, input_shape=(1, 3, 3))
    assert masks.kept == kept_weights(masks.total, density)
    zeros = sum(int((subject.get_parameter(name)[~mask] == 0).sum()) for name, mask in masks.items())
    assert zeros == masks.total - masks.kept


@each_pruner
def test_the_local_scope_is_exact_in_each_layer(pruner: type[Pruner]) -> None:
    for mask in masks_of(pruner, density=0.3, scope="local", rounds=3).values():
        assert int(mask.sum()) == kept_weights(mask.numel(), Fraction(3, 10))


@each_pruner
def test_a_number_of_weights_can_be_asked_for(pruner: type[Pruner]) -> None:
    assert masks_of(pruner, kept=17).kept == 17
    assert masks_of(pruner, kept=1).kept == 1


@each_pruner
def test_density_one_removes_nothing_and_changes_nothing(pruner: type[Pruner]) -> None:
    subject, before = network(), network()
    assert prune(subject, pruner(), density=1.0, input_shape=(1, 3, 3)).density == 1.0
    assert all(torch.equal(a, b) for a, b in zip(subject.parameters(), before.parameters(), strict=True))


@each_pruner
def test_removed_weights_stay_removed_from_round_to_round(pruner: type[Pruner]) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Watching(pruner):  # type: ignore[misc,valid-type]
        def score(self, subject: Subject) -> object:
            seen.append({name: mask.clone() for name, mask in subject.masks.items()})
            living = {name: int(mask.sum()) for name, mask in subject.masks.items()}
            assert all(int(weight.count_nonzero()) == living[name] for name, weight in subject.weights.items())
            return super().score(subject)

    masks = prune(network(), Watching(), density=0.1, rounds=6, input_shape=(1, 3, 3))
    seen.append(dict(masks))
    assert len(seen) == 7
    for earlier, later in pairwise(seen):
        assert all(not (later[name] & ~earlier[name]).any() for name in later)
        assert sum(int(mask.sum()) for mask in later.values()) < sum(int(mask.sum()) for mask in earlier.values())


@each_pruner
def test_the_same_seed_gives_the_same_masks(pruner: type[Pruner]) -> None:
    first, second = masks_of(pruner, density=0.2), masks_of(pruner, density=0.2)
    assert all(torch.equal(first[name], second[name]) for name in first)


@each_pruner
def test_survivors_keep_their_weights_and_scoring_leaves_everything_else(pruner: type[Pruner]) -> None:
    torch.manual_seed(0)
    subject = ResNet(8, width=4)
    subject.blocks[1].eval()
    subject(torch.randn(2, 3, 8, 8)).sum().backward()
    state = {name: tensor.clone() for name, tensor in subject.state_dict().items()}
    gradients = {name: parameter.grad.clone() for name, parameter in subject.named_parameters()}
    modes = [module.training for module in subject.modules()]
    random = torch.get_rng_state()
    masks = prune(subject, pruner(), density=0.3, rounds=3, input_shape=(3, 8, 8))
    for name, tensor in subject.state_dict().items():
        expected = state[name] * masks[name] if name in masks else state[name]
        assert torch.equal(tensor, expected), name
    assert all(torch.equal(gradients[name], parameter.grad) for name, parameter in subject.named_parameters())
    assert modes == [module.training for module in subject.modules()]
    assert torch.equal(random, torch.get_rng_state())


@each_pruner
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_can_be_pruned(pruner: type[Pruner], dtype: torch.dtype) -> None:
    subject = network().to(dtype)
    masks = prune(subject, pruner(), density=0.25, input_shape=(1, 3, 3))
    assert masks.kept == kept_weights(masks.total, Fraction(1, 4))
    assert all(parameter.dtype == dtype for parameter in subject.parameters())


@each_pruner
def test_equal_weights_are_cut_to_the_exact_number(pruner: type[Pruner]) -> None:
    subject = nn.Sequential(nn.Linear(5, 5, bias=False), nn.ReLU(), nn.Linear(5, 5, bias=False))
    for parameter in subject.parameters():
        nn.init.constant_(parameter, 0.5)
    assert prune(subject, pruner(), density=0.3, rounds=1, input_shape=(5,)).kept == 15
