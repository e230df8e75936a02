from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import get_args

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from synflow_pl import prune
from synflow_pl.networks import FC, VGG, ResNet
from synflow_pl.pruners import Random
from synflow_pl.pruners.sparsity_distributions import Rule, weights_per_layer

RULES = get_args(Rule)
shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(*[st.integers(1, 9)] * 2, *[st.integers(1, 3)] * 2),
    ),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=100, deadline=None)
@given(shapes=shapes, share=st.fractions(0, 1))
def test_quotas_add_up_and_fit(rule: Rule, shapes: list[tuple[int, ...]], share: Fraction) -> None:
    sizes = [math.prod(shape) for shape in shapes]
    kept = math.floor(share * sum(sizes))
    assume(rule != "smart_ratio" or kept >= 0.3 * sizes[-1])
    found = weights_per_layer(rule, shapes, kept)
    assert sum(found) == kept
    assert all(0 <= quota <= size for quota, size in zip(found, sizes, strict=True))


def test_uniform_is_the_same_share_of_each_layer_with_the_rest_to_the_largest_remainders() -> None:
    # Of 10, 15 and 25 weights, 13 are 26 %: 2.6, 3.9 and 6.5. Rounded down 2, 3 and 6, and two more
    # to .9 and .6.
    assert weights_per_layer("uniform", [(2, 5), (3, 5), (5, 5)], 13) == [3, 4, 6]


def test_erdos_renyi_gives_a_layer_what_is_proportional_to_inputs_plus_units() -> None:
    # 10 + 20 = 30 and 20 + 40 = 60: of 45 weights 15 and 30.
    assert weights_per_layer("er", [(20, 10), (40, 20)], 45) == [15, 30]
    # ER sees channels, 2 + 4 = 6 in a kernel of 9 each: density 6 / 8 and 30 / 200 but for one
    # factor. 54 : 30 weights.
    assert weights_per_layer("er", [(4, 2, 3, 3), (20, 10)], 42) == [27, 15]
    # ERK sees (2 + 4 + 3 + 3) = 12 and 30 weights.
    assert weights_per_layer("erk", [(4, 2, 3, 3), (20, 10)], 42) == [12, 30]


def test_a_layer_that_is_full_passes_its_excess_on() -> None:
    # ER wishes 2 : 30 : 60 for sizes 1, 200, 800. At 46 weights 1 : 15 : 30; at 91 the first is
    # full, 1 : 30 : 60.
    assert weights_per_layer("er", [(1, 1), (20, 10), (40, 20)], 46) == [1, 15, 30]
    assert weights_per_layer("er", [(1, 1), (20, 10), (40, 20)], 91) == [1, 30, 60]


def test_smart_ratio_falls_with_depth_and_keeps_three_tenths_of_the_last_layer() -> None:
    # Layers 1 and 2 of 3: 3^2 + 3 = 12 and 2^2 + 2 = 6, of equal sizes; 6 of the last 20. 36
    # weights: 20, 10, 6.
    assert weights_per_layer("smart_ratio", [(10, 10), (10, 10), (2, 10)], 36) == [20, 10, 6]
    with pytest.raises(
        ValueError,
        match=r"keeps 0\.3 of the last layer, 6 weights, more than the 5 that are to be left",
    ):
        weights_per_layer("smart_ratio", [(10, 10), (10, 10), (2, 10)], 5)


def test_smart_ratio_of_other_networks_divides_by_the_square_of_the_layer_and_keeps_three_tenths_of_each_linear_layer() -> (
    None
):
    # Layers 1, 2 and 3 of 5: (25 + 5) / 1 = 30, (16 + 4) / 4 = 5 and (9 + 3) / 9 = 4 / 3, times 90
    # weights each: 2700 : 450 : 120. Of linear layers with 20 and 10 weights 6 and 3 are fixed.
    shapes = [(10, 1, 3, 3), (10, 1, 3, 3), (10, 1, 3, 3), (2, 10), (1, 10)]
    assert weights_per_layer("smart_ratio", shapes, 9 + 128, residual=False) == [
        90,
        30,
        8,
        6,
        3,
    ]  # the first is full, 38 as 5 : 4 / 3
    assert weights_per_layer("smart_ratio", shapes, 9 + 36, residual=False) == [
        30,
        5,
        1,
        6,
        3,
    ]  # 36 as 30 : 5 : 4 / 3
    with pytest.raises(
        ValueError,
        match=r"keeps 0\.3 of each of 2 linear layers, 9 weights, more than the 8 that are to be left",
    ):
        weights_per_layer("smart_ratio", shapes, 8, residual=False)


def test_smart_ratio_fixes_nothing_without_linear_layers_and_the_last_layer_where_all_are_linear() -> (
    None
):
    # 2 of 2: (4 + 2) / 1 = 6 and (1 + 1) / 4 = 1 / 2.
    assert weights_per_layer("smart_ratio", [(10, 1, 3, 3), (10, 1, 3, 3)], 26, residual=False) == [
        24,
        2,
    ]
    assert weights_per_layer(
        "smart_ratio", [(10, 10), (10, 10), (2, 10)], 54 + 6, residual=False
    ) == [48, 6, 6]  # 12 and 6 / 4


@settings(max_examples=100, deadline=None)
@given(shapes=shapes, share=st.fractions(0, 1))
def test_smart_ratios_of_other_networks_add_up_and_fit(
    shapes: list[tuple[int, ...]], share: Fraction
) -> None:
    sizes = [math.prod(shape) for shape in shapes]
    kept = math.floor(share * sum(sizes))
    assume(
        kept
        >= 0.3 * sum(size for size, shape in zip(sizes, shapes, strict=True) if len(shape) == 2)
    )
    found = weights_per_layer("smart_ratio", shapes, kept, residual=False)
    assert sum(found) == kept
    assert all(0 <= quota <= size for quota, size in zip(found, sizes, strict=True))


@pytest.mark.parametrize(
    ("build", "residual"),
    [(lambda: VGG(11), False), (lambda: ResNet(8, width=4), True), (FC, False)],
)
@pytest.mark.parametrize("given", [None, True, False])
def test_smart_ratio_takes_the_rule_for_what_the_network_is_unless_one_is_forced(
    build: Callable[[], nn.Module], residual: bool, given: bool | None
) -> None:
    pruner = Random(quota="smart_ratio", residual=given)
    masks = prune(build(), pruner, density=0.1)
    rule = residual if given is None else given
    assert [int(mask.sum()) for mask in masks.values()] == weights_per_layer(
        "smart_ratio", [mask.shape for mask in masks.values()], masks.kept, residual=rule
    )
    assert pruner.notes == (
        f"smart_ratio by its rule for {'residual' if rule else 'other than residual'} networks",
    )


def test_residual_chooses_between_the_rules_of_smart_ratio_only() -> None:
    with pytest.raises(
        ValueError,
        match="residual: True chooses between the rules of quota='smart_ratio', and quota is 'erk'",
    ):
        Random(quota="erk", residual=True)


def test_ideal_gas_quotas_are_lengths_under_one_force() -> None:
    # F = 1 / 100: densities 1 / (1 + n F) of 100 and 300 weights are 1 / 2 and 1 / 4.
    assert weights_per_layer("igq", [(10, 10), (10, 30)], 50 + 75) == [50, 75]


def test_an_unknown_quota_is_refused_where_it_is_given() -> None:
    with pytest.raises(
        ValueError, match="quota: 'kernels' is not one of uniform, er, erk, smart_ratio, igq"
    ):
        Random(quota="kernels")  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rounds", [1, 4])
def test_random_pruning_fills_its_quotas_exactly(rule: Rule, rounds: int) -> None:
    network = ResNet(20)
    masks = prune(network, Random(quota=rule), density=0.05, rounds=rounds, on_collapse="ignore")
    expected = weights_per_layer(rule, [mask.shape for mask in masks.values()], masks.kept)
    found = [int(mask.sum()) for mask in masks.values()]
    # Rounding may differ by one where an earlier round has left no more.
    assert (
        found == expected
        if rounds == 1
        else all(abs(a - b) <= 1 for a, b in zip(found, expected, strict=True))
    )
    assert masks.density == pytest.approx(0.05, abs=1e-5)


def test_a_quota_and_the_local_scope_contradict_each_other() -> None:
    with pytest.raises(
        ValueError, match="quota='erk' and scope='local' both say how many weights each layer keeps"
    ):
        prune(FC(), Random(quota="erk"), density=0.1, scope="local")


def test_within_a_layer_its_places_are_random() -> None:
    first, second = (
        prune(FC(), Random(seed, quota="erk"), density=0.1)["layers.1.weight"] for seed in (1, 2)
    )
    assert int(first.sum()) == int(second.sum())
    # Two independent masks of density d share d^2 of the weights.
    density = float(first.float().mean())
    assert float((first & second).float().mean()) == pytest.approx(density**2, rel=0.15)
    assert torch.unique(first.nonzero()[:, 1]).numel() > 700
