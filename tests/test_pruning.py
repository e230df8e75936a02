from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synflow_pl import Masks, diagnose, prune
from synflow_pl.effective_density import nearest_attainable
from synflow_pl.networks import FC
from synflow_pl.pruners import (
    FORCE,
    LAMP,
    NTKSAP,
    PHEW,
    SNIP,
    GraSP,
    Magnitude,
    Pruner,
    PruningState,
    Random,
    Shuffled,
    SynFlow,
    SynFlowL2,
)
from synflow_pl.pruning_options import PruningOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either density, in \\(0, 1\\], or num_kept"),
        ({"density": 0.1, "num_kept": 3}, "give either density"),
        ({"density": 0}, r"density: 0 is not in \(0, 1\]"),
        ({"density": 1.5}, r"density: 1.5 is not in \(0, 1\]"),
        ({"num_kept": 0}, "num_kept: 0 must be a whole number of weights, at least 1"),
        ({"num_kept": 10**9}, "num_kept: 1000000000 is more than the 119400 prunable weights"),
        (
            {"num_kept": 5, "scope": "local"},
            "num_kept counts the weights of the whole network; with scope='local' give density",
        ),
        (
            {"effective_density": 0.1, "scope": "local"},
            "effective_density is about the weights of the whole network; with scope",
        ),
        ({"effective_density": 0.1, "num_kept": 3}, "give either density"),
        ({"effective_density": 1.1}, r"density: 1.1 is not in \(0, 1\]"),
        ({"density": 0.1, "rounds": 0}, "rounds: 0 must be a whole number, at least 1"),
        ({"density": 0.1, "rounds": 2.0}, "rounds: 2.0 must be a whole number"),
        (
            {"density": 0.1, "schedule": "exponentail"},
            "'exponentail' is not one of exponential, linear, cubic; did you mean 'exponential'",
        ),
        (
            {"density": 0.1, "scope": "globl"},
            "scope: 'globl' is not one of global, local; did you mean 'global'",
        ),
    ],
)
def test_an_impossible_option_is_an_error_before_any_score_is_computed(
    options: dict[str, Any], message: str
) -> None:
    class NeverCalled(Pruner):
        def score(self, state: PruningState) -> Any:
            raise AssertionError("scores were computed")

    with pytest.raises(ValueError, match=message):
        prune(FC(), NeverCalled(), **options)


def test_options_of_a_pruning_are_checked_when_they_are_constructed() -> None:
    assert PruningOptions(density=0.1).scope == "global"
    with pytest.raises(ValueError, match="rounds: 0 must be a whole number, at least 1"):
        PruningOptions(density=0.1, rounds=0)
    with pytest.raises(ValueError, match="on_collapse: 'warm' is not one of warn, error, ignore"):
        PruningOptions(density=0.1, on_collapse="warm")  # type: ignore[arg-type]


def test_synflow_without_an_input_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="give either input_shape"):
        prune(FC(), SynFlow(), density=0.1)


def test_a_pruner_that_scores_on_data_requires_pairs_of_images_and_labels() -> None:
    class OnData(Magnitude):
        needs_batches = True

    image, label = torch.ones(1, 4), torch.zeros(1, dtype=torch.long)
    for batches, message in (
        (iter([(image, label)]), "got a list_iterator"),
        ([image], r"batches\[0\] is no pair of tensors"),
        ([(image, label), (image, label, label)], r"batches\[1\] is no pair of tensors"),
        ([(image, label.repeat(2))], r"batches\[0\] has 1 images and 2 labels"),
        ([(image[:0], label[:0])], "there are no images in these"),
    ):
        with pytest.raises(ValueError, match=rf"OnData scores on data: give batches=.*; {message}"):
            prune(nn.Linear(4, 2), OnData(), density=0.5, batches=batches)
    with pytest.raises(ValueError, match=r"OnData scores on data: give batches=.*; got none"):
        prune(FC(), OnData(), density=0.1)


def test_the_default_number_of_rounds_is_the_pruners_and_on_round_is_called_after_each() -> None:
    rounds: list[tuple[int, float]] = []
    prune(
        FC(),
        SynFlow(),
        density=0.01,
        input_shape=(1, 28, 28),
        on_round=lambda index, density, _: rounds.append((index, density)),
    )
    assert [index for index, _ in rounds] == list(range(1, 101))
    assert rounds[49][1] == pytest.approx(0.1, abs=1e-5)
    assert rounds[-1][1] == 1194 / 119400
    rounds.clear()
    prune(
        FC(),
        Magnitude(),
        density=0.01,
        on_round=lambda index, density, _: rounds.append((index, density)),
    )
    assert len(rounds) == 1


def test_the_state_has_the_density_that_the_round_will_leave() -> None:
    densities = []

    class Recording(Magnitude):
        def score(self, state: PruningState) -> Any:
            densities.append(float(state.density))
            return super().score(state)

    prune(FC(), Recording(), density=0.04, rounds=2)
    assert densities == pytest.approx([0.2, 0.04], abs=1e-5)


def test_an_interruption_leaves_the_network_dense() -> None:
    network = FC()
    before = [parameter.clone() for parameter in network.parameters()]

    def interrupt(index: int, *_: object) -> None:
        if index == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(network, SynFlow(), density=0.01, input_shape=(1, 28, 28), on_round=interrupt)
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def test_a_bias_is_kept_exactly_if_its_unit_has_a_kept_weight() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    network[0].weight.data = torch.tensor([[5.0, 4.0], [0.1, 0.2], [3.0, 0.3]])
    network[2].weight.data = torch.tensor([[1.0, 1.0, 1.0]])
    network[0].bias.data = torch.tensor([7.0, 8.0, 9.0])
    masks = prune(network, Magnitude(), num_kept=6, mask_bias=True)
    assert masks["0.bias"].tolist() == [True, False, True]
    assert masks["2.bias"].tolist() == [True]
    assert network[0].bias.tolist() == [7.0, 0.0, 9.0]
    assert (masks.kept, masks.total) == (6, 9)
    assert masks.followers == {"0.bias", "2.bias"}


def test_the_units_of_a_transposed_convolution_are_its_second_dimension() -> None:
    network = nn.Sequential(nn.ConvTranspose2d(2, 3, 1))
    network[0].weight.data = torch.tensor([[1.0, 0.1, 3.0], [2.0, 0.2, 0.3]]).view(2, 3, 1, 1)
    assert prune(network, Magnitude(), num_kept=3, mask_bias=True)["0.bias"].tolist() == [
        True,
        False,
        True,
    ]


def test_a_normalisation_is_masked_with_the_one_layer_that_it_reads() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.unmasked = (
                nn.Conv2d(1, 2, 1),
                nn.BatchNorm2d(2),
                nn.BatchNorm2d(2),
            )

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            out = self.bn(self.conv(images))
            return self.unmasked(out + images)

    network = Net()
    network.conv.weight.data = torch.tensor([5.0, 0.1]).view(2, 1, 1, 1)
    nn.init.constant_(network.bn.bias, 3.0)
    masks = prune(network, Magnitude(), num_kept=1, mask_norm=True, input_shape=(1, 2, 2))
    assert masks.followers == {"bn.weight", "bn.bias"}
    assert network.bn.bias.tolist() == [3.0, 0.0]
    assert network.bn.weight.tolist() == [1.0, 0.0]
    assert network.unmasked.weight.tolist() == [1.0, 1.0]


def test_random_scores_over_many_rounds_keep_the_exact_number() -> None:
    # No weight may be removed, and counted, twice.
    masks = prune(FC(), Random(), density=0.003, rounds=60)
    assert masks.kept == 359


# -- continuing from earlier masks


def magnitudes(*rows: list[float]) -> nn.Sequential:
    """Two linear layers, 2 -> 2 -> 1, with these weights."""
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    network[0].weight.data, network[1].weight.data = torch.tensor(rows[:2]), torch.tensor(rows[2:])
    return network


def test_weights_removed_by_earlier_masks_stay_removed_and_density_counts_all_weights() -> None:
    network = magnitudes([1.0, 2.0], [3.0, 4.0], [5.0, 6.0])
    earlier = Masks(
        {
            "0.weight": torch.tensor([[True, True], [False, True]]),
            "1.weight": torch.tensor([[False, True]]),
        }
    )
    # 3 of 6 weights: the three largest of 1, 2, 4 and 6.
    masks = prune(network, Magnitude(), density=0.5, masks=earlier)
    assert masks["0.weight"].tolist() == [[False, True], [False, True]]
    assert masks["1.weight"].tolist() == [[False, True]]
    assert network[0].weight.tolist() == [[0, 2], [0, 4]]
    assert (earlier.kept, masks.kept, masks.total) == (4, 3, 6)


def test_rounds_start_at_the_density_of_earlier_masks() -> None:
    rounds: list[float] = []
    earlier = prune(network := FC(), Magnitude(), density=0.16)
    # From 0.16 to 0.01 in two equal factors, with 0.04 in between.
    prune(
        network,
        Magnitude(),
        density=0.01,
        rounds=2,
        masks=earlier,
        on_round=lambda _, density, __: rounds.append(density),
    )
    assert rounds == pytest.approx([0.04, 0.01], abs=1e-5)


def test_earlier_masks_with_too_few_weights_or_other_parameters_are_an_error() -> None:
    earlier = prune(FC(), Magnitude(), density=0.1)
    with pytest.raises(
        ValueError, match="59700 of 119400 weights are to be kept, but masks= leaves 11940"
    ):
        prune(FC(), Magnitude(), density=0.5, masks=earlier)
    with pytest.raises(
        ValueError, match=r"masks and exclude disagree about what is pruned: layers\.1\.weight"
    ):
        prune(FC(), Magnitude(), density=0.05, masks=earlier, exclude=["layers.1.*"])
    again = prune(FC(), Magnitude(), density=0.1, masks=earlier)
    assert all(torch.equal(again[name], mask) for name, mask in earlier.items())


def test_a_layer_that_earlier_masks_emptied_stays_empty_without_an_error_about_zero_scores() -> (
    None
):
    network = magnitudes([1.0, 2.0], [3.0, 4.0], [5.0, 6.0])
    earlier = Masks(
        {
            "0.weight": torch.ones(2, 2, dtype=torch.bool),
            "1.weight": torch.zeros(1, 2, dtype=torch.bool),
        }
    )
    assert prune(network, Magnitude(), num_kept=2, masks=earlier)["0.weight"].tolist() == [
        [False, False],
        [True, True],
    ]


def test_with_local_scope_a_layer_with_fewer_weights_than_its_density_keeps_all_of_them() -> None:
    network = magnitudes([1.0, 2.0], [3.0, 4.0], [5.0, 6.0])
    earlier = Masks(
        {
            "0.weight": torch.tensor([[False, False], [False, True]]),
            "1.weight": torch.tensor([[True, True]]),
        }
    )
    masks = prune(network, Magnitude(), density=0.5, scope="local", masks=earlier)
    assert masks["0.weight"].tolist() == [[False, False], [False, True]]
    assert masks["1.weight"].tolist() == [[False, True]]


def test_a_shuffled_pruner_cannot_continue_from_earlier_masks() -> None:
    earlier = prune(network := FC(), Magnitude(), density=0.5)
    with pytest.raises(ValueError, match="Shuffled brings back weights that masks= removed"):
        prune(network, Shuffled(Magnitude()), density=0.1, masks=earlier)


def test_batches_can_be_a_function_of_the_round_and_are_drawn_only_if_needed() -> None:
    asked: list[int] = []

    class Checking(SNIP):
        def score(self, state: PruningState) -> dict[str, Tensor]:
            assert float(state.batches[0][0].flatten()[0]) == 1.0 + asked[-1]
            return super().score(state)

    def drawn(index: int) -> list[tuple[Tensor, Tensor]]:
        asked.append(index)
        return [(torch.full((2, 1, 28, 28), 1.0 + index), torch.tensor([3, 4]))]

    prune(FC(width=20), Checking(), density=0.2, rounds=4, batches=drawn)
    assert asked == [0, 1, 2, 3]
    asked.clear()
    prune(FC(width=20), Magnitude(), density=0.2, rounds=4, batches=drawn)
    assert asked == []


@pytest.mark.parametrize("bad", [0, 2])
def test_batches_of_each_round_are_checked(bad: int) -> None:
    network = FC(width=20)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    with pytest.raises(ValueError, match=r"SNIP scores on data: give batches=.*; got none"):
        prune(
            network,
            SNIP(),
            density=0.2,
            rounds=4,
            batches=lambda index: [] if index == bad else ON_DATA,
        )
    assert all(
        torch.equal(before[name], parameter) for name, parameter in network.named_parameters()
    )


ON_DATA = [
    (torch.ones(2, 1, 28, 28) * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1), torch.tensor([3, 4]))
]
CONTINUING = [FORCE, GraSP, LAMP, Magnitude, NTKSAP, PHEW, Random, SNIP, SynFlow, SynFlowL2]


@pytest.mark.parametrize("pruner", CONTINUING, ids=lambda pruner: pruner.__name__)
def test_every_pruner_can_continue_from_earlier_masks(pruner: type[Pruner]) -> None:
    network = FC(width=20)
    earlier = prune(network, Random(), density=0.5)
    masks = prune(
        network,
        pruner(),
        density=0.2,
        rounds=3,
        masks=earlier,
        input_shape=(1, 28, 28),
        batches=ON_DATA,
    )
    assert masks.kept == -(-masks.total // 5)
    assert all(not (mask & ~earlier[name]).any() for name, mask in masks.items())


# -- by effective density


@pytest.mark.parametrize(
    "pruner", [SNIP, SynFlow, Magnitude, Random], ids=lambda pruner: pruner.__name__
)
@pytest.mark.parametrize("density", [0.3, 0.05])
def test_the_effective_density_is_the_nearest_of_all_attainable_ones(
    pruner: type[Pruner], density: float
) -> None:
    def small() -> FC:
        torch.manual_seed(0)
        return FC((1, 2, 2), num_classes=4, depth=4, width=5)  # 4 * 5 + 2 * 25 + 5 * 4 = 90 weights

    batches = [
        (
            torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(1)),
            torch.tensor([0, 1, 2]),
        )
    ]
    options: dict[str, Any] = {"input_shape": (1, 2, 2), "batches": batches, "rounds": 1}
    network = small()
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    masks = prune(network, pruner(), effective_density=density, **options)
    effective = diagnose(network, masks, input_shape=(1, 2, 2)).effective
    # In one round a larger num_kept keeps a superset, so the number of effective weights never
    # decreases, and all values of num_kept can be compared.
    found = {}
    for kept in range(1, 91):
        other = small()
        others = prune(other, pruner(), num_kept=kept, on_collapse="ignore", **options)
        found[kept] = diagnose(other, others, input_shape=(1, 2, 2)).effective
    wanted = round(90 * density + 0.499)
    assert abs(effective - wanted) == min(abs(count - wanted) for count in found.values())
    assert all(torch.equal(network.get_parameter(n), before[n] * masks[n]) for n in masks)


def test_on_round_is_called_for_the_final_pruning_and_not_for_attempts() -> None:
    rounds: list[int] = []
    network = FC()
    masks = prune(
        network,
        SynFlow(),
        effective_density=0.01,
        input_shape=(1, 28, 28),
        rounds=20,
        on_round=lambda k, *_: rounds.append(k),
    )
    effective = diagnose(network, masks, input_shape=(1, 28, 28)).effective
    # With iterated scores not every number of effective weights is attainable.
    assert masks.kept >= effective == pytest.approx(1194, abs=10)
    assert rounds == list(range(1, 21))


@pytest.mark.parametrize("wanted", [1, 10, 37, 50])
def test_bisection_finds_an_argument_with_the_wanted_value_in_few_steps(wanted: int) -> None:
    tried: list[int] = []

    def half(kept: int) -> int:
        tried.append(kept)
        return kept // 2

    assert half(nearest_attainable(half, wanted, 100)) == wanted
    assert len(tried) < 12


def test_bisection_returns_the_nearest_value_if_the_wanted_one_is_not_attained() -> None:
    assert nearest_attainable(lambda kept: 0 if kept < 40 else 30, 10, 100) == 10  # 0 is nearest
    assert nearest_attainable(lambda kept: 0 if kept < 40 else 30, 20, 100) == 40
    assert nearest_attainable(lambda kept: kept // 10, 90, 100) == 100


class Towers(nn.Module):
    """Network with two convolutions and a normalisation that reads one or both of them."""

    def __init__(self, read: str) -> None:
        super().__init__()
        self.read = read
        self.a, self.b = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(3, 4, 1, bias=False)
        self.norm, self.fc = nn.BatchNorm2d(8 if read == "concatenation" else 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        if self.read == "both":
            y = self.norm(a) + self.norm(b)
        elif self.read == "one, then a sum":
            y = self.norm(a + self.norm(b))
        elif self.read == "sum":
            y = self.norm(a + b)
        elif self.read == "one, then the input":
            y = self.norm(a) + self.norm(x.mean(1, keepdim=True).expand_as(b))
        elif self.read == "concatenation":
            y = sum(self.norm(torch.cat([a, b], 1)).chunk(2, 1))
        elif self.read == "gain used elsewhere":
            y = self.norm(a) + b * self.norm.weight.view(1, -1, 1, 1)
        elif self.read == "one twice":
            y = self.norm(a) + self.norm(self.a(2 * x)) + b
        else:
            y = self.norm(a) + b
        return self.fc(y.mean((2, 3)))


@pytest.mark.parametrize(
    "read",
    [
        "both",
        "one, then a sum",
        "sum",
        "one, then the input",
        "concatenation",
        "gain used elsewhere",
    ],
)
def test_a_gain_that_scales_anything_but_one_layer_is_not_masked(read: str) -> None:
    masks = prune(
        Towers(read), SynFlow(), density=0.2, rounds=2, input_shape=(3, 4, 4), mask_norm=True
    )
    assert "norm.weight" not in masks


@pytest.mark.parametrize("read", ["one", "one twice"])
def test_a_gain_that_scales_one_layer_is_masked_with_its_units(read: str) -> None:
    masks = prune(
        Towers(read), SynFlow(), density=0.2, rounds=2, input_shape=(3, 4, 4), mask_norm=True
    )
    assert torch.equal(masks["norm.weight"], masks["a.weight"].flatten(1).any(1))
    assert torch.equal(masks["norm.bias"], masks["norm.weight"])
