"""Properties of every pruner of the package; the pruners are collected from ``__all__``."""

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
    PX,
    SNIP,
    FisherOBD,
    GraSP,
    GRASPIt,
    HutchinsonOBD,
    InvertedGraSP,
    LogSynFlow,
    Magnitude,
    ProsPr,
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
# Wrappers are tested with SNIP, which has the most requirements.
WRAPPERS = [pruner for pruner in PRUNERS if "pruner" in inspect.signature(pruner).parameters]
REGROWING = [pruner for pruner in PRUNERS if pruner.regrows]
each_pruner = pytest.mark.parametrize("pruner", PRUNERS, ids=lambda pruner: pruner.__name__)


def network(width: int = 6, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    sizes = [9, width, width, width, 4]
    layers = [
        layer for left, right in pairwise(sizes) for layer in (nn.Linear(left, right), nn.Tanh())
    ]
    return nn.Sequential(nn.Flatten(), *layers[:-1])  # tanh units are never zero, unlike ReLU units


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
    model: nn.Module, pruner: Pruner, shape: tuple[int, ...] = (1, 3, 3), **options: Any
) -> synflow_pl.Masks:
    classes = next(
        layer.out_features
        for layer in reversed(list(model.modules()))
        if isinstance(layer, nn.Linear)
    )
    return prune(
        model, pruner, input_shape=shape, **{"batches": images(*shape, classes=classes)} | options
    )


def masks_of(pruner: type[Pruner], **options: Any) -> synflow_pl.Masks:
    return pruned(network(), made(pruner), **options)


def test_pruners_wrappers_and_regrowing_pruners_are_collected() -> None:
    assert len(PRUNERS) >= 14
    assert len(WRAPPERS) == 3
    assert REGROWING == [FORCE]


@each_pruner
@settings(max_examples=50, deadline=None)
@given(
    width=st.integers(1, 9), density=st.fractions(Fraction(1, 1000), 1), rounds=st.integers(1, 5)
)
def test_density_is_exact_for_every_size_and_density(
    pruner: type[Pruner], width: int, density: Fraction, rounds: int
) -> None:
    model = network(width)
    masks = pruned(model, made(pruner), density=density, rounds=rounds)
    assert masks.kept == kept_weights(masks.total, density)
    zeros = sum(int((model.get_parameter(name)[~mask] == 0).sum()) for name, mask in masks.items())
    assert zeros == masks.total - masks.kept


@each_pruner
def test_local_scope_is_exact_in_each_layer(pruner: type[Pruner]) -> None:
    for mask in masks_of(pruner, density=0.3, scope="local", rounds=3).values():
        assert int(mask.sum()) == kept_weights(mask.numel(), Fraction(3, 10))


@each_pruner
def test_the_number_of_weights_kept_can_be_given(pruner: type[Pruner]) -> None:
    assert masks_of(pruner, num_kept=17).kept == 17
    assert masks_of(pruner, num_kept=1).kept == 1


@each_pruner
def test_density_one_removes_nothing_and_changes_nothing(pruner: type[Pruner]) -> None:
    model, before = network(), network()
    assert pruned(model, made(pruner), density=1.0).density == 1.0
    if pruner is Reinitialised:
        return
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    "pruner", [x for x in PRUNERS if x not in REGROWING], ids=lambda pruner: pruner.__name__
)
def test_removed_weights_stay_removed_from_round_to_round(pruner: type[Pruner]) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Recording(pruner):  # type: ignore[misc,valid-type]
        def score(self, state: PruningState) -> object:
            seen.append({name: mask.clone() for name, mask in state.masks.items()})
            kept = {name: int(mask.sum()) for name, mask in state.masks.items()}
            assert all(
                int(weight.count_nonzero()) == kept[name] for name, weight in state.weights.items()
            )
            return super().score(state)

    masks = pruned(network(), made(Recording), density=0.1, rounds=6)
    assert len(seen) == 6
    if pruner is not Shuffled:  # masks are shuffled after the last round
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
def test_pruning_changes_nothing_but_removed_weights(
    pruner: type[Pruner],
) -> None:
    torch.manual_seed(0)
    model = ResNet(8, width=4)
    model.blocks[1].eval()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    masks = pruned(model, made(pruner), (3, 8, 8), density=0.3, rounds=3)
    for name, tensor in model.state_dict().items():
        expected = state[name] * masks[name] if name in masks else state[name]
        if pruner is Reinitialised and name in masks:
            assert not tensor[~masks[name]].any()
        else:
            assert torch.equal(tensor, expected), name
    assert all(
        torch.equal(gradients[name], parameter.grad) for name, parameter in model.named_parameters()
    )
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(random, torch.get_rng_state())


@each_pruner
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_can_be_pruned(pruner: type[Pruner], dtype: torch.dtype) -> None:
    model = network().to(dtype)
    masks = pruned(model, made(pruner), density=0.25, rounds=3)
    assert masks.kept == kept_weights(masks.total, Fraction(1, 4))
    assert all(parameter.dtype == dtype for parameter in model.parameters())


@pytest.mark.parametrize(
    "pruner",
    [Magnitude, LAMP, Random, SynFlow, SynFlowL2, LogSynFlow, PHEW, NTKSAP],
    ids=lambda pruner: pruner.__name__,
)
def test_equal_weights_are_pruned_to_the_exact_number(pruner: type[Pruner]) -> None:
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.ReLU(), nn.Linear(5, 5, bias=False))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    assert prune(model, pruner(), density=0.3, rounds=1, input_shape=(5,)).kept == 15


@pytest.mark.parametrize("rounds", [1, 3])
def test_of_equal_scores_the_first_weights_are_kept(rounds: int) -> None:
    class Constant(Pruner):
        def score(self, state: PruningState) -> dict[str, Tensor]:
            return {name: torch.full_like(weight, 7.0) for name, weight in state.weights.items()}

    masks = pruned(network(), Constant(), num_kept=10, rounds=rounds)
    assert torch.cat([mask.flatten() for mask in masks.values()]).nonzero().squeeze(
        1
    ).tolist() == list(range(10))


@each_pruner
@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_layers_of_one_weight_are_pruned_to_the_exact_number(
    pruner: type[Pruner], kept: int
) -> None:
    layers = [layer for _ in range(3) for layer in (nn.Linear(1, 1), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(1, 2))
    assert pruned(model, made(pruner), (1,), num_kept=kept, rounds=2).kept == kept


@pytest.mark.parametrize(
    ("pruner", "factors"),
    [
        *[(pruner, [4.0] * 4) for pruner in (Magnitude, PHEW)],
        *[(pruner, [4.0, 0.5, 2.0, 8.0]) for pruner in (LAMP, SynFlow, SynFlowL2, NTKSAP, Random)],
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_masks_of_scale_invariant_pruners_do_not_depend_on_the_scale_of_a_layer(
    pruner: type[Pruner], factors: list[float]
) -> None:
    expected, model = masks_of(pruner, density=0.3), network()
    with torch.no_grad():
        for layer, factor in zip(
            [layer for layer in model if isinstance(layer, nn.Linear)], factors, strict=True
        ):
            layer.weight.mul_(factor)
    found = pruned(model, pruner(), density=0.3)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "pruner",
    [SNIP, FORCE, GraSP, InvertedGraSP, GRASPIt, FisherOBD, HutchinsonOBD, PX],
    ids=lambda pruner: pruner.__name__,
)
def test_masks_do_not_depend_on_the_scale_of_the_loss(pruner: type[Pruner]) -> None:
    expected = masks_of(pruner, density=0.3)
    found = masks_of(
        pruner,
        density=0.3,
        loss=lambda logits, labels: 8 * nn.functional.cross_entropy(logits, labels),
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "pruner",
    [SNIP, FORCE, GraSP, InvertedGraSP, GRASPIt, FisherOBD, HutchinsonOBD, PX, ProsPr],
    ids=lambda pruner: pruner.__name__,
)
def test_a_pruner_that_scores_on_data_requires_batches(pruner: type[Pruner]) -> None:
    with pytest.raises(ValueError, match=f"{pruner.__name__} scores on data: give batches="):
        prune(network(), pruner(), density=0.3)


@pytest.mark.parametrize(
    "pruner", [SNIP, Magnitude, LAMP, FORCE, FisherOBD], ids=lambda pruner: pruner.__name__
)
def test_a_parameter_with_zero_scores_stays_dense_and_is_noted(pruner: type[Pruner]) -> None:
    model = network()
    # The gradients of the layers below this one are zero as well.
    nn.init.zeros_(model[3].weight)
    instance = pruner()
    masks = pruned(model, instance, density=0.9, rounds=1)
    assert masks["3.weight"].all()
    assert masks.kept == kept_weights(masks.total, Fraction(9, 10))
    assert any(
        note.startswith("kept dense, since their scores are zero throughout: ")
        and "3.weight" in note
        for note in instance.notes
    )


def test_parameters_with_zero_scores_and_too_many_weights_are_an_error() -> None:
    model = network()
    nn.init.zeros_(model[3].weight)
    with pytest.raises(
        ValueError,
        match=r"scores all \d+ weights of .*3.weight zero and so would keep them, but only 15"
        " weights",
    ):
        pruned(model, SNIP(), num_kept=15)


def test_scores_that_are_all_zero_are_an_error() -> None:
    model = network()
    nn.init.zeros_(model[7].weight)
    with pytest.raises(
        ValueError, match="every score of GraSP is zero, so its masks would be arbitrary"
    ):
        pruned(model, GraSP(), density=0.5, loss=lambda logits, labels: (logits * 0).sum())
