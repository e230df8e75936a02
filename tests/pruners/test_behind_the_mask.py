"""Scores of a network that is already pruned, compared with references in float64.

In the references a removed weight is not a parameter.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from synflow_pl import Masks, prune
from synflow_pl.pruners import (
    FORCE,
    NTKSAP,
    PHEW,
    SNIP,
    GraSP,
    Inverted,
    InvertedGraSP,
    Pruner,
    Random,
    Shuffled,
)

Tensors = dict[str, Tensor]
TEMPERATURE = 200.0


def network() -> nn.Module:
    """Return a network with convolutions, BatchNorm, biases and a linear layer, in float64.

    It has 128 weights, and BatchNorm has nontrivial statistics and gains.
    """
    torch.manual_seed(3)
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Conv2d(4, 5, 2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(5, 3),
    ).double()
    with torch.no_grad():
        for tensor in (made[1].weight, made[1].running_var):
            tensor.uniform_(0.5, 2.0)
        made[1].running_mean.normal_()
    return made


def batches(round_index: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(10 + round_index)
    return [
        (
            torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64),
            torch.randint(0, 3, (n,), generator=generator),
        )
        for n in (7, 4)
    ]


def weights_of(network: nn.Module) -> Tensors:
    return {name: p.detach() for name, p in network.named_parameters() if p.dim() > 1}


def mean_loss(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    data: list[tuple[Tensor, Tensor]],
    temperature: float = 1.0,
) -> Tensor:
    """Return the mean loss over all images; in train mode each batch has its own statistics."""
    sums = [
        cross_entropy(functional_call(network, {**weights}, (x,)) / temperature, y, reduction="sum")
        for x, y in data
    ]
    return torch.stack(sums).sum() / sum(len(y) for _, y in data)


def grasp(network: nn.Module, masks: Tensors, data: list[tuple[Tensor, Tensor]]) -> Tensors:
    """Return theta * H g for the vector theta of kept weights, with an explicit Hessian.

    This is Equation 8 of Wang et al. 2020.
    """
    weights = weights_of(network)
    theta = torch.cat([weights[name][mask] for name, mask in masks.items()])
    counts = [int(mask.sum()) for mask in masks.values()]

    def placed(vector: Tensor) -> Tensors:
        parts = zip(masks.items(), vector.split(counts), strict=True)
        return {
            name: torch.zeros_like(weights[name]).masked_scatter(mask, part)
            for (name, mask), part in parts
        }

    def loss(vector: Tensor) -> Tensor:
        return mean_loss(network, placed(vector), data, TEMPERATURE)

    gradient = torch.autograd.functional.jacobian(loss, theta)
    return placed(theta * (torch.autograd.functional.hessian(loss, theta) @ gradient))


def inverted_grasp(
    network: nn.Module, masks: Tensors, data: list[tuple[Tensor, Tensor]]
) -> Tensors:
    return {name: -score for name, score in grasp(network, masks, data).items()}


def snip(network: nn.Module, masks: Tensors, data: list[tuple[Tensor, Tensor]]) -> Tensors:
    """Return |dL(c * w)/dc| at the masks c (Lee et al. 2019, Equation 4)."""
    weights = weights_of(network)
    entries = {name: mask.double().requires_grad_() for name, mask in masks.items()}
    loss = mean_loss(
        network, {name: weights[name] * entry for name, entry in entries.items()}, data
    )
    return {
        name: g.abs()
        for name, g in zip(masks, torch.autograd.grad(loss, list(entries.values())), strict=True)
    }


def force(network: nn.Module, masks: Tensors, data: list[tuple[Tensor, Tensor]]) -> Tensors:
    """Return |w * dL/dw'| at w' = c * w (de Jorge et al. 2021, Equation 6).

    The weights w are dense, the gradient is that of the pruned network.
    """
    weights = weights_of(network)
    pruned = {name: (weights[name] * mask).requires_grad_() for name, mask in masks.items()}
    gradients = torch.autograd.grad(mean_loss(network, pruned, data), list(pruned.values()))
    return {name: (weights[name] * g).abs() for name, g in zip(masks, gradients, strict=True)}


Score = Callable[[nn.Module, Tensors, list[tuple[Tensor, Tensor]]], Tensors]
CASES: dict[str, tuple[Callable[[], Pruner], Score]] = {
    "GraSP": (GraSP, grasp),
    "InvertedGraSP": (InvertedGraSP, inverted_grasp),
    "Inverted(GraSP)": (lambda: Inverted(GraSP()), inverted_grasp),
    "SNIP": (SNIP, snip),
    "Inverted(SNIP)": (
        lambda: Inverted(SNIP()),
        lambda *args: {name: -score for name, score in snip(*args).items()},
    ),
    "FORCE": (FORCE, force),
}
each_case = pytest.mark.parametrize("case", CASES)


def best(flat: Tensor, count: int) -> Tensor:
    """Return the indices of the largest scores, in descending order, ties broken by position."""
    return flat.sort(descending=True, stable=True).indices[:count]


def by_reference(
    score: Score,
    counts: list[int],
    masks: Tensors,
    *,
    regrows: bool,
    train_mode: bool = False,
    fresh: bool = False,
) -> Tensors:
    """Return masks of a loop that keeps the largest scores of kept weights, or of all weights."""
    model = network().train(train_mode)
    for index, count in enumerate(counts):
        scores = score(copy.deepcopy(model), masks, batches(index if fresh else 0))
        flat = torch.cat(
            [
                s.masked_fill(~masks[name] & (not regrows), -math.inf).flatten()
                for name, s in scores.items()
            ]
        )
        kept = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, best(flat, count), True)
        parts = kept.split([mask.numel() for mask in masks.values()])
        masks = {
            name: part.view_as(mask)
            for (name, mask), part in zip(masks.items(), parts, strict=True)
        }
    return masks


def count_kept(masks: Mapping[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def pruned(
    pruner: Pruner, model: nn.Module | None = None, **options: Any
) -> tuple[Masks, list[int]]:
    counts: list[int] = []
    found = prune(
        network() if model is None else model,
        pruner,
        loss=cross_entropy,
        **{"batches": batches()} | options,
        on_round=lambda index, density, masks: counts.append(count_kept(masks)),
    )
    return found, counts


def same(found: Mapping[str, Tensor], expected: Tensors) -> bool:
    return all(torch.equal(found[name], mask) for name, mask in expected.items())


def dense() -> Tensors:
    return {
        name: torch.ones_like(weight, dtype=torch.bool)
        for name, weight in weights_of(network()).items()
    }


@each_case
@pytest.mark.parametrize("rounds", [1, 2, 7])
@pytest.mark.parametrize("train_mode", [False, True])
def test_every_round_scores_the_pruned_network(case: str, rounds: int, train_mode: bool) -> None:
    build, score = CASES[case]
    found, counts = pruned(build(), density=0.15, rounds=rounds, train_mode=train_mode)
    assert len(counts) == rounds
    assert same(
        found, by_reference(score, counts, dense(), regrows=build().regrows, train_mode=train_mode)
    )


@each_case
def test_fresh_batches_are_used_in_their_round_only(case: str) -> None:
    build, score = CASES[case]
    found, counts = pruned(build(), density=0.15, rounds=4, batches=batches, train_mode=True)
    assert same(
        found,
        by_reference(score, counts, dense(), regrows=build().regrows, train_mode=True, fresh=True),
    )
    assert not same(
        found, by_reference(score, counts, dense(), regrows=build().regrows, train_mode=True)
    )


# FORCE cannot continue from earlier masks, since it brings weights back.
@pytest.mark.parametrize("case", [case for case in CASES if case != "FORCE"])
@pytest.mark.parametrize(
    "earlier", [Random(seed=1), Shuffled(SNIP(), seed=2)], ids=["random", "shuffled"]
)
@pytest.mark.parametrize("scope", ["global", "local"])
def test_pruning_from_earlier_masks_scores_the_masked_network(
    case: str, earlier: Pruner, scope: str
) -> None:
    build, score = CASES[case]
    masks, _ = pruned(earlier, density=0.6)
    # Removed weights are zero in the first network and keep their values in the second.
    for model in (network(), None):
        if model is not None:
            masks.apply(model)
        found, counts = pruned(build(), model, density=0.2, rounds=3, masks=masks, scope=scope)
        if scope == "global":
            assert same(
                found,
                by_reference(score, counts, {name: masks[name] for name in masks}, regrows=False),
            )
        assert all(not (mask & ~masks[name]).any() for name, mask in found.items())


def test_scores_of_grasp_do_not_depend_on_gradients_of_removed_weights() -> None:
    # The outgoing weight of the second unit is removed. Its gradient is large and must not count.
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    model[0].weight.data = torch.tensor([[1.0], [50.0]], dtype=torch.float64)
    model[1].weight.data = torch.tensor([[1.0, 0.5], [-2.0, 0.25]], dtype=torch.float64)
    masks = {
        "0.weight": torch.tensor([[True], [True]]),
        "1.weight": torch.tensor([[True, False], [True, False]]),
    }
    data = [(torch.ones(1, 1, dtype=torch.float64), torch.tensor([0]))]
    expected = grasp(model, masks, data)
    other = copy.deepcopy(model)
    other[0].weight.data[1] = 7.0  # it feeds removed weights only
    kept = grasp(other, masks, data)
    assert torch.equal(kept["1.weight"], expected["1.weight"])
    both = [
        prune(copy.deepcopy(net), GraSP(), num_kept=1, rounds=1, masks=Masks(masks), batches=data)
        for net in (model, other)
    ]
    flat = torch.cat(
        [score.masked_fill(~masks[name], -math.inf).flatten() for name, score in expected.items()]
    )
    assert [
        torch.cat([mask.flatten() for mask in found.values()]).nonzero().item() for found in both
    ] == [int(flat.argmax())] * 2


def test_levels_of_grasp_with_training_between_them_score_each_masked_network() -> None:
    model, masks, reference = network().eval(), None, dense()
    for level, density in enumerate((0.6, 0.35, 0.2)):
        with torch.no_grad():  # kept weights are trained
            for name, weight in weights_of(model).items():
                weight.add_(
                    0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(level))
                ).mul_(reference[name])
        scores = grasp(model, reference, batches())
        masks, (count,) = pruned(GraSP(), model, density=density, rounds=1, masks=masks)
        flat = torch.cat(
            [
                score.masked_fill(~reference[name], -math.inf).flatten()
                for name, score in scores.items()
            ]
        )
        kept = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, best(flat, count), True)
        reference = {
            n: p.view_as(m)
            for (n, m), p in zip(
                reference.items(), kept.split([m.numel() for m in reference.values()]), strict=True
            )
        }
        assert same(masks, reference)


def test_ntk_sap_scores_the_pruned_architecture() -> None:
    # Wang et al. 2023, Equation 9: each round draws images, weights and changes, and differentiates
    # with respect to the masks.
    counts: list[int] = []
    model = nn.Sequential(
        nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 3)
    ).double()
    earlier = prune(copy.deepcopy(model), Random(seed=5), density=0.8)
    found = prune(
        copy.deepcopy(model),
        NTKSAP(images=8, epsilon=0.05, seed=4),
        density=0.2,
        rounds=4,
        masks=earlier,
        input_shape=(4,),
        on_round=lambda index, density, masks: counts.append(count_kept(masks)),
    )
    generator = torch.Generator().manual_seed(4)
    masks = {name: earlier[name] for name in earlier}
    for count in counts:
        x = torch.randn(8, 4, dtype=torch.float64, generator=generator)
        w = {
            n: nn.init.kaiming_normal_(
                torch.empty(m.shape, dtype=torch.float64), generator=generator
            )
            for n, m in masks.items()
        }
        changed = {
            n: w[n] + 0.05 * torch.randn(m.shape, dtype=torch.float64, generator=generator)
            for n, m in masks.items()
        }
        entries = {n: m.double().requires_grad_() for n, m in masks.items()}

        def outputs(weights: Tensors, x: Tensor = x, entries: Tensors = entries) -> Tensor:
            for name in entries:
                x = x @ (weights[name] * entries[name]).mT
                x = x if name == "4.weight" else x.tanh()
            return x

        trace = (outputs(w) - outputs(changed)).square().sum(1).mean()
        flat = torch.cat(
            [g.abs().flatten() for g in torch.autograd.grad(trace, list(entries.values()))]
        )
        flat[~torch.cat([m.flatten() for m in masks.values()])] = -math.inf
        kept = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, best(flat, count), True)
        masks = {
            n: p.view_as(m)
            for (n, m), p in zip(
                masks.items(), kept.split([m.numel() for m in masks.values()]), strict=True
            )
        }
    assert same(found, masks)


def test_walks_of_phew_choose_among_kept_weights_only() -> None:
    # Patil & Dovrolis 2021, Equation 4: P is |w| over the sum of |w|. The weight 9 is removed, so
    # it is 3 / (3 + 1).
    taken = 0
    masks = Masks(
        {
            "0.weight": torch.tensor([[True], [True], [False]]),
            "1.weight": torch.tensor([[True, True, True]]),
        }
    )
    for seed in range(300):
        model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False))
        model[0].weight.data, model[1].weight.data = (
            torch.tensor([[3.0], [-1.0], [9.0]]),
            torch.ones(1, 3),
        )
        found = prune(model, PHEW(seed), num_kept=2, masks=masks, input_shape=(1,))
        assert not found["0.weight"][2, 0]
        taken += int(found["0.weight"][0, 0])
    assert taken / 300 == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 300))
