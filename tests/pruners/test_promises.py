"""What every pruner of the package promises; they are found here, not listed."""

from __future__ import annotations

import inspect
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import synflow_pl.pruners
from synflow_pl import prune
from synflow_pl.networks import ResNet
from synflow_pl.pruners import (
    FORCE,
    LAMP,
    NTKSAP,
    PHEW,
    SNIP,
    GraSP,
    InvertedGraSP,
    Magnitude,
    Pruner,
    PruningState,
    Random,
    Reinitialised,
    Shuffled,
    SynFlow,
    SynFlowL2,
)
from synflow_pl.schedules import kept_weights

PRUNERS = [
    value
    for name in synflow_pl.pruners.__all__
    if isinstance(value := getattr(synflow_pl.pruners, name), type)
    and issubclass(value, Pruner)
    and value is not Pruner
]
# One that stands around another is tested around SNIP, which needs the most.
AROUND = [pruner for pruner in PRUNERS if "pruner" in inspect.signature(pruner).parameters]
REGROWING = [pruner for pruner in PRUNERS if pruner.regrows]
each_pruner = pytest.mark.parametrize("pruner", PRUNERS, ids=lambda pruner: pruner.__name__)


def network(width: int = 6, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    sizes = [9, width, width, width, 4]
    layers = [
        layer for left, right in pairwise(sizes) for layer in (nn.Linear(left, right), nn.Tanh())
    ]
    return nn.Sequential(nn.Flatten(), *layers[:-1])  # no unit of it is ever silent


def images(*shape: int, classes: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(n, *shape, generator=generator),
            torch.randint(0, classes, (n,), generator=generator),
        )
        for n in (6, 3)
    ]


def made(pruner: type[Pruner]) -> Pruner:
    return pruner(SNIP()) if "pruner" in inspect.signature(pruner).parameters else pruner()  # type: ignore[call-arg]


def pruned(
    subject: nn.Module, pruner: Pruner, shape: tuple[int, ...] = (1, 3, 3), **options: Any
) -> synflow_pl.Masks:
    classes = next(
        layer.out_features
        for layer in reversed(list(subject.modules()))
        if isinstance(layer, nn.Linear)
    )
    return prune(
        subject, pruner, input_shape=shape, **{"batches": images(*shape, classes=classes)} | options
    )


def masks_of(pruner: type[Pruner], **options: Any) -> synflow_pl.Masks:
    return pruned(network(), made(pruner), **options)


def test_there_are_pruners() -> None:
    assert len(PRUNERS) >= 14
    assert len(AROUND) == 3
    assert REGROWING == [FORCE]


@each_pruner
@settings(max_examples=50, deadline=None)
@given(
    width=st.integers(1, 9), density=st.fractions(Fraction(1, 1000), 1), rounds=st.integers(1, 5)
)
def test_density_is_exact_for_every_size_and_density(
    pruner: type[Pruner], width: int, density: Fraction, rounds: int
) -> None:
    subject = network(width)
    masks = pruned(subject, made(pruner), density=density, rounds=rounds)
    assert masks.kept == kept_weights(masks.total, density)
    zeros = sum(
        int((subject.get_parameter(name)[~mask] == 0).sum()) for name, mask in masks.items()
    )
    assert zeros == masks.total - masks.kept


@each_pruner
def test_the_local_scope_is_exact_in_each_layer(pruner: type[Pruner]) -> None:
    for mask in masks_of(pruner, density=0.3, scope="local", rounds=3).values():
        assert int(mask.sum()) == kept_weights(mask.numel(), Fraction(3, 10))


@each_pruner
def test_a_number_of_weights_can_be_asked_for(pruner: type[Pruner]) -> None:
    assert masks_of(pruner, num_kept=17).kept == 17
    assert masks_of(pruner, num_kept=1).kept == 1


@each_pruner
def test_density_one_removes_nothing_and_changes_nothing(pruner: type[Pruner]) -> None:
    subject, before = network(), network()
    assert pruned(subject, made(pruner), density=1.0).density == 1.0
    if pruner is Reinitialised:
        return
    assert all(
        torch.equal(a, b) for a, b in zip(subject.parameters(), before.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    "pruner", [x for x in PRUNERS if x not in REGROWING], ids=lambda pruner: pruner.__name__
)
def test_removed_weights_stay_removed_from_round_to_round(pruner: type[Pruner]) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Watching(pruner):  # type: ignore[misc,valid-type]
        def score(self, state: PruningState) -> object:
            seen.append({name: mask.clone() for name, mask in subject.masks.items()})
            living = {name: int(mask.sum()) for name, mask in subject.masks.items()}
            assert all(
                int(weight.count_nonzero()) == living[name]
                for name, weight in subject.weights.items()
            )
            return super().score(state)

    masks = pruned(network(), made(Watching), density=0.1, rounds=6)
    assert len(seen) == 6
    if pruner is not Shuffled:  # it shuffles when all is over
        seen.append(dict(masks))
    for earlier, later in pairwise(seen):
        assert all(not (later[name] & ~earlier[name]).any() for name in later)
        assert sum(int(mask.sum()) for mask in later.values()) < sum(
            int(mask.sum()) for mask in earlier.values()
        )


@each_pruner
def test_the_same_seed_gives_the_same_masks(pruner: type[Pruner]) -> None:
    first, second = masks_of(pruner, density=0.2), masks_of(pruner, density=0.2)
    assert all(torch.equal(first[name], second[name]) for name in first)


@each_pruner
def test_survivors_keep_their_weights_and_scoring_leaves_everything_else(
    pruner: type[Pruner],
) -> None:
    torch.manual_seed(0)
    subject = ResNet(8, width=4)
    subject.blocks[1].eval()
    subject(torch.randn(2, 3, 8, 8)).sum().backward()
    state = {name: tensor.clone() for name, tensor in subject.state_dict().items()}
    gradients = {name: parameter.grad.clone() for name, parameter in subject.named_parameters()}
    modes = [module.training for module in subject.modules()]
    random = torch.get_rng_state()
    masks = pruned(subject, made(pruner), (3, 8, 8), density=0.3, rounds=3)
    for name, tensor in subject.state_dict().items():
        expected = state[name] * masks[name] if name in masks else state[name]
        if pruner is Reinitialised and name in masks:
            assert not tensor[~masks[name]].any()
        else:
            assert torch.equal(tensor, expected), name
    assert all(
        torch.equal(gradients[name], parameter.grad)
        for name, parameter in subject.named_parameters()
    )
    assert modes == [module.training for module in subject.modules()]
    assert torch.equal(random, torch.get_rng_state())


@each_pruner
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_can_be_pruned(pruner: type[Pruner], dtype: torch.dtype) -> None:
    subject = network().to(dtype)
    masks = pruned(subject, made(pruner), density=0.25, rounds=3)
    assert masks.kept == kept_weights(masks.total, Fraction(1, 4))
    assert all(parameter.dtype == dtype for parameter in subject.parameters())


@pytest.mark.parametrize(
    "pruner",
    [Magnitude, LAMP, Random, SynFlow, SynFlowL2, PHEW, NTKSAP],
    ids=lambda pruner: pruner.__name__,
)
def test_equal_weights_are_cut_to_the_exact_number(pruner: type[Pruner]) -> None:
    subject = nn.Sequential(nn.Linear(5, 5, bias=False), nn.ReLU(), nn.Linear(5, 5, bias=False))
    for parameter in subject.parameters():
        nn.init.constant_(parameter, 0.5)
    assert prune(subject, pruner(), density=0.3, rounds=1, input_shape=(5,)).kept == 15


@pytest.mark.parametrize("rounds", [1, 3])
def test_equal_scores_leave_the_first_weights(rounds: int) -> None:
    class Indifferent(Pruner):
        def score(self, state: PruningState) -> dict[str, Tensor]:
            return {name: torch.full_like(weight, 7.0) for name, weight in subject.weights.items()}

    masks = pruned(network(), Indifferent(), num_kept=10, rounds=rounds)
    assert torch.cat([mask.flatten() for mask in masks.values()]).nonzero().squeeze(
        1
    ).tolist() == list(range(10))


@each_pruner
@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_layers_of_one_weight_are_cut_to_the_exact_number(pruner: type[Pruner], kept: int) -> None:
    layers = [layer for _ in range(3) for layer in (nn.Linear(1, 1), nn.Tanh())]
    subject = nn.Sequential(*layers, nn.Linear(1, 2))
    assert pruned(subject, made(pruner), (1,), num_kept=kept, rounds=2).kept == kept


@pytest.mark.parametrize(
    ("pruner", "factors"),
    [
        *[(pruner, [4.0] * 4) for pruner in (Magnitude, PHEW)],
        *[(pruner, [4.0, 0.5, 2.0, 8.0]) for pruner in (LAMP, SynFlow, SynFlowL2, NTKSAP, Random)],
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_the_scale_of_a_layer_changes_no_mask_of_a_pruner_that_does_not_see_it(
    pruner: type[Pruner], factors: list[float]
) -> None:
    expected, subject = masks_of(pruner, density=0.3), network()
    with torch.no_grad():
        for layer, factor in zip(
            [layer for layer in subject if isinstance(layer, nn.Linear)], factors, strict=True
        ):
            layer.weight.mul_(factor)
    found = pruned(subject, pruner(), density=0.3)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "pruner", [SNIP, FORCE, GraSP, InvertedGraSP], ids=lambda pruner: pruner.__name__
)
def test_the_scale_of_the_loss_changes_no_mask(pruner: type[Pruner]) -> None:
    expected = masks_of(pruner, density=0.3)
    found = masks_of(
        pruner,
        density=0.3,
        loss=lambda logits, labels: 8 * nn.functional.cross_entropy(logits, labels),
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "pruner", [SNIP, FORCE, GraSP, InvertedGraSP], ids=lambda pruner: pruner.__name__
)
def test_a_pruner_that_scores_on_data_asks_for_it(pruner: type[Pruner]) -> None:
    with pytest.raises(ValueError, match=f"{pruner.__name__} scores on data: give batches="):
        prune(network(), pruner(), density=0.3)


@pytest.mark.parametrize(
    "pruner", [SNIP, Magnitude, LAMP, FORCE], ids=lambda pruner: pruner.__name__
)
def test_a_weight_that_is_zero_throughout_stays_dense_and_is_named(pruner: type[Pruner]) -> None:
    subject = network()
    nn.init.zeros_(
        subject[3].weight
    )  # between two layers: the gradients of those below it are zero as well
    found = pruner()
    masks = pruned(subject, found, density=0.9, rounds=1)
    assert masks["3.weight"].all()
    assert masks.kept == kept_weights(masks.total, Fraction(9, 10))
    assert any(
        note.startswith("kept dense, since their scores are zero throughout: ")
        and "3.weight" in note
        for note in found.notes
    )


def test_what_stays_dense_may_not_be_more_than_is_to_be_left() -> None:
    subject = network()
    nn.init.zeros_(subject[3].weight)
    with pytest.raises(
        ValueError,
        match=r"scores all \d+ weights of .*3.weight zero and so would keep them, but only 15 weights",
    ):
        pruned(subject, SNIP(), num_kept=15)


def test_scores_that_are_all_zero_are_an_error() -> None:
    subject = network()
    nn.init.zeros_(subject[7].weight)
    with pytest.raises(
        ValueError, match="every score of GraSP is zero, so its masks would be arbitrary"
    ):
        pruned(subject, GraSP(), density=0.5, loss=lambda logits, labels: (logits * 0).sum())
