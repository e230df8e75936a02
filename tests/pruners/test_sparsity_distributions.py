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
def test_numbers_of_weights_have_the_right_sum_and_fit_the_layers(
    rule: Rule, shapes: list[tuple[int, ...]], share: Fraction
) -> None:
    sizes = [math.prod(shape) for shape in shapes]
    kept = math.floor(share * sum(sizes))
    assume(rule != "smart_ratio" or kept >= 0.3 * sizes[-1])
    assume(rule != "uniform_plus" or kept >= sizes[0] + 0.2 * sizes[-1])
    found = weights_per_layer(rule, shapes, kept)
    assert sum(found) == kept
    assert all(0 <= quota <= size for quota, size in zip(found, sizes, strict=True))


def test_uniform_is_the_same_density_in_each_layer_rounded_by_largest_remainders() -> None:
    # 13 of 10 + 15 + 25 weights are 26 %: 2.6, 3.9 and 6.5, rounded down to 2, 3 and 6, and one
    # more for each of the two largest remainders, .9 and .6.
    assert weights_per_layer("uniform", [(2, 5), (3, 5), (5, 5)], 13) == [3, 4, 6]


def test_uniform_plus_keeps_the_first_convolution_and_a_fifth_of_the_last_layer() -> None:
    # Of 36, 100, 200 and 40 weights, all 36 and 0.2 * 40 = 8 are fixed.
    shapes = [(4, 1, 3, 3), (10, 10), (20, 10), (4, 10)]
    assert weights_per_layer("uniform_plus", shapes, 36 + 8 + 30) == [36, 10, 20, 8]
    # At a common density of 0.5 the last layer is above its bound.
    assert weights_per_layer("uniform_plus", shapes, 36 + 170) == [36, 50, 100, 20]
    with pytest.raises(
        ValueError,
        match=r"keeps all of the first layer and 0\.2 of the last layer, 44 weights, more than the"
        " 43 that are to be left",
    ):
        weights_per_layer("uniform_plus", shapes, 43)


def test_uniform_plus_fixes_no_first_layer_if_it_is_linear_and_nothing_in_a_single_layer() -> None:
    # 0.2 * 40 = 8 of the last layer, and a tenth of the others.
    assert weights_per_layer("uniform_plus", [(10, 10), (20, 10), (4, 10)], 38) == [10, 20, 8]
    assert weights_per_layer("uniform_plus", [(4, 1, 3, 3)], 9) == [9]
    with pytest.raises(ValueError, match=r"uniform_plus keeps 0\.2 of the last layer, 8 weights"):
        weights_per_layer("uniform_plus", [(10, 10), (4, 10)], 7)


def test_erdos_renyi_keeps_weights_in_proportion_to_inputs_plus_units() -> None:
    # 10 + 20 = 30 and 20 + 40 = 60, so 45 weights are divided into 15 and 30.
    assert weights_per_layer("er", [(20, 10), (40, 20)], 45) == [15, 30]
    # ER counts channels only, 2 + 4 = 6 with a kernel of 9 entries each. The densities are
    # proportional to 6 / 8 and 30 / 200, the weights to 54 and 30.
    assert weights_per_layer("er", [(4, 2, 3, 3), (20, 10)], 42) == [27, 15]
    # ERK counts the kernel too: 2 + 4 + 3 + 3 = 12 and 30 weights.
    assert weights_per_layer("erk", [(4, 2, 3, 3), (20, 10)], 42) == [12, 30]


def test_the_excess_of_a_layer_that_is_kept_whole_goes_to_the_other_layers() -> None:
    # ER gives 2 : 30 : 60 for the sizes 1, 200 and 800. 46 weights are divided into 1, 15 and 30.
    # At 91 weights the first layer is full, so the others share 90 as 30 and 60.
    assert weights_per_layer("er", [(1, 1), (20, 10), (40, 20)], 46) == [1, 15, 30]
    assert weights_per_layer("er", [(1, 1), (20, 10), (40, 20)], 91) == [1, 30, 60]


def test_smart_ratio_decreases_with_depth_and_keeps_three_tenths_of_the_last_layer() -> None:
    # Layers 1 and 2 of 3 have 3^2 + 3 = 12 and 2^2 + 2 = 6 and equal sizes. The last layer keeps 6
    # of 20 weights, so 36 weights are divided into 20, 10 and 6.
    assert weights_per_layer("smart_ratio", [(10, 10), (10, 10), (2, 10)], 36) == [20, 10, 6]
    with pytest.raises(
        ValueError,
        match=r"keeps 0\.3 of the last layer, 6 weights, more than the 5 that are to be left",
    ):
        weights_per_layer("smart_ratio", [(10, 10), (10, 10), (2, 10)], 5)


def test_smart_ratio_of_other_networks_divides_by_the_squared_index_and_fixes_linear_layers() -> (
    None
):
    # Layers 1, 2 and 3 of 5 have (25 + 5) / 1 = 30, (16 + 4) / 4 = 5 and (9 + 3) / 9 = 4 / 3, times
    # 90 weights each: 2700 : 450 : 120. The linear layers with 20 and 10 weights keep 6 and 3.
    shapes = [(10, 1, 3, 3), (10, 1, 3, 3), (10, 1, 3, 3), (2, 10), (1, 10)]
    # The first layer is full, and the next two share 38 weights as 5 : 4 / 3.
    kept = weights_per_layer("smart_ratio", shapes, 9 + 128, residual=False)
    assert kept == [90, 30, 8, 6, 3]
    # The first three layers share 36 weights as 30 : 5 : 4 / 3.
    kept = weights_per_layer("smart_ratio", shapes, 9 + 36, residual=False)
    assert kept == [30, 5, 1, 6, 3]
    with pytest.raises(
        ValueError,
        match=r"keeps 0\.3 of each of 2 linear layers, 9 weights, more than the 8 that are to be"
        " left",
    ):
        weights_per_layer("smart_ratio", shapes, 8, residual=False)


def test_smart_ratio_fixes_no_layer_without_linear_ones_and_the_last_if_all_are_linear() -> None:
    # Layers 1 and 2 of 2 have (4 + 2) / 1 = 6 and (1 + 1) / 4 = 1 / 2.
    assert weights_per_layer("smart_ratio", [(10, 1, 3, 3), (10, 1, 3, 3)], 26, residual=False) == [
        24,
        2,
    ]
    # Layers 1 and 2 of 3 have 12 and 6 / 4.
    kept = weights_per_layer("smart_ratio", [(10, 10), (10, 10), (2, 10)], 54 + 6, residual=False)
    assert kept == [48, 6, 6]


@settings(max_examples=100, deadline=None)
@given(shapes=shapes, share=st.fractions(0, 1))
def test_smart_ratios_of_other_networks_have_the_right_sum_and_fit_the_layers(
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
def test_smart_ratio_detects_residual_networks_unless_the_rule_is_given(
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


def test_the_option_residual_without_smart_ratio_is_an_error() -> None:
    with pytest.raises(
        ValueError,
        match="residual: True chooses between the rules of quota='smart_ratio', and quota is 'erk'",
    ):
        Random(quota="erk", residual=True)


def test_ideal_gas_quotas_have_one_force_for_all_layers() -> None:
    # With F = 1 / 100 the densities 1 / (1 + n F) for 100 and 300 weights are 1 / 2 and 1 / 4.
    assert weights_per_layer("igq", [(10, 10), (10, 30)], 50 + 75) == [50, 75]


def test_an_unknown_quota_is_an_error_when_the_pruner_is_constructed() -> None:
    with pytest.raises(
        ValueError,
        match="quota: 'kernels' is not one of uniform, uniform_plus, er, erk, smart_ratio, igq",
    ):
        Random(quota="kernels")  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rounds", [1, 4])
def test_random_pruning_keeps_the_numbers_of_its_distribution(rule: Rule, rounds: int) -> None:
    network = ResNet(20)
    masks = prune(network, Random(quota=rule), density=0.05, rounds=rounds, on_collapse="ignore")
    expected = weights_per_layer(rule, [mask.shape for mask in masks.values()], masks.kept)
    found = [int(mask.sum()) for mask in masks.values()]
    # After several rounds numbers may differ by one, since an earlier round may have left fewer.
    assert (
        found == expected
        if rounds == 1
        else all(abs(a - b) <= 1 for a, b in zip(found, expected, strict=True))
    )
    assert masks.density == pytest.approx(0.05, abs=1e-5)


def test_a_quota_with_local_scope_is_an_error() -> None:
    with pytest.raises(
        ValueError, match="quota='erk' and scope='local' both say how many weights each layer keeps"
    ):
        prune(FC(), Random(quota="erk"), density=0.1, scope="local")


def test_random_masks_with_a_quota_are_independent_within_a_layer() -> None:
    first, second = (
        prune(FC(), Random(seed, quota="erk"), density=0.1)["layers.1.weight"] for seed in (1, 2)
    )
    assert int(first.sum()) == int(second.sum())
    # Two independent masks of density d share d^2 of the weights.
    density = float(first.float().mean())
    assert float((first & second).float().mean()) == pytest.approx(density**2, rel=0.15)
    assert torch.unique(first.nonzero()[:, 1]).numel() > 700
