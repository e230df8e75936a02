"""Ratio of the score that a round removes to the score of a layer."""

from __future__ import annotations

import pytest
import torch
import torchvision
from textbook import first_scores, positive_copy, prunable_of
from torch import Tensor, nn

from synflow_pl.experiments import largest_ratio
from synflow_pl.networks import FC, VGG
from synflow_pl.pruners import FORCE, Magnitude, Pruner, PruningState, Random, SynFlow

IMAGENET = (3, 224, 224)


def two_paths() -> nn.Module:
    """Return a network with two paths, whose SynFlow scores are 1 and 3 in both layers.

    It has one input, two hidden units and one output; the weights are 1 and 3 into the hidden
    units, and 1 and 1 out of them, so R = 1 + 3.
    """
    network = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    network[0].weight.data = torch.tensor([[1.0], [3.0]])
    network[1].weight.data = torch.tensor([[1.0, 1.0]])
    return network


@pytest.mark.parametrize(("density", "ratio"), [(0.75, 1 / 4), (0.5, 2 / 4), (0.25, 5 / 4)])
def test_the_prune_size_of_one_round_is_the_sum_of_the_removed_scores(
    density: float, ratio: float
) -> None:
    found = largest_ratio(two_paths(), SynFlow(), density, 1, "exponential", input_shape=(1,))
    assert (found.ratio, found.round) == (pytest.approx(ratio), 1)


def test_each_round_is_measured_by_its_own_scores() -> None:
    # Round 1 removes 1 + 1 of the total 4. Then the scores are 3 and 3, and round 2 removes one of
    # them: 3 of 3.
    found = largest_ratio(two_paths(), SynFlow(), 0.25, 2, "exponential", input_shape=(1,))
    assert (found.ratio, found.round) == (pytest.approx(1), 2)


def test_the_cut_size_is_the_total_of_the_smallest_layer() -> None:
    # The magnitudes are 1 and 3 into the units, 1 and 1 out of them. At density 0.5 two of the ones
    # are removed, at 0.25 all three.
    assert largest_ratio(two_paths(), Magnitude(), 0.5, 1, "linear").ratio == pytest.approx(2 / 2)
    assert largest_ratio(two_paths(), Magnitude(), 0.25, 1, "linear").ratio == pytest.approx(3 / 2)


def test_pruned_weights_with_a_score_do_not_count_in_later_rounds() -> None:
    network = nn.Sequential(nn.Linear(30, 30, bias=False), nn.Linear(30, 30, bias=False))
    # The scores of Random, which are equal in every round.
    draws = torch.rand(1800, generator=torch.Generator().manual_seed(0))
    order = draws.sort().values
    found = largest_ratio(network, Random(seed=0), 0.25, 3, "linear")
    # Each round removes 450 weights. The last one removes the largest numbers; the cut size is the
    # total of the layer with less left.
    kept = draws >= order[900]
    left = [float(draws[part][kept[part]].sum()) for part in (slice(0, 900), slice(900, 1800))]
    assert found.round == 3
    assert found.ratio == pytest.approx(float(order[900:1350].sum()) / min(left), rel=1e-5)


def test_the_ratio_is_that_of_a_textbook_loop_also_when_layers_are_compressed() -> None:
    network, shape, rounds = FC((1, 6, 6), depth=4, width=60).double(), (1, 6, 6), 20
    total = sum(weight.numel() for weight in prunable_of(network).values())
    positive, ratios, density = positive_copy(network), [], 0.004
    for index in range(1, rounds + 1):
        scores = first_scores(positive, shape)
        flat = torch.cat([score.flatten() for score in scores.values()])
        flow = float(next(iter(scores.values())).sum())
        keep = total - int((1 - density ** (index / rounds)) * total)
        threshold = flat.sort(descending=True).values[keep - 1]
        ratios.append(float(flat[flat < threshold].sum()) / flow)
        with torch.no_grad():
            for name, weight in prunable_of(positive).items():
                weight.mul_(scores[name] >= threshold)
    found = largest_ratio(network, SynFlow(), density, rounds, "exponential", input_shape=shape)
    assert found.ratio == pytest.approx(max(ratios), rel=1e-9)
    assert found.round == ratios.index(max(ratios)) + 1


def test_all_weights_compete_in_every_round_of_a_pruner_that_regrows() -> None:
    batches = [(torch.ones(1, 1), torch.zeros(1, 1))]
    # L = f = w1 v1 + w2 v2, so |w dL/dw| equals SynFlow's score. In round 2 the pruned path
    # competes too, with scores of zero.
    found = largest_ratio(
        two_paths(), FORCE(), 0.25, 2, "exponential", batches=batches, loss=lambda out, _: out.sum()
    )
    assert found.ratio == pytest.approx(1)


def test_the_schedule_experiment_refuses_negative_scores() -> None:
    class Signed(Pruner):
        def score(self, state: PruningState) -> dict[str, Tensor]:
            return {name: -weight for name, weight in state.weights.items()}

    with pytest.raises(ValueError, match=r"Signed gives negative scores \(in '0.weight'\)"):
        largest_ratio(two_paths(), Signed(), 0.5, 1, "linear")


def test_the_network_of_the_schedule_experiment_is_left_unchanged() -> None:
    network = two_paths()
    before = [parameter.clone() for parameter in network.parameters()]
    largest_ratio(network, SynFlow(), 0.25, 2, "exponential", input_shape=(1,))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_automatic_rounds_remove_at_most_the_margin_of_a_layer() -> None:
    network = FC((1, 6, 6), depth=4, width=60)
    options = {"input_shape": (1, 6, 6), "margin": 0.5}
    found = largest_ratio(network, SynFlow(), 0.004, "auto", None, **options)
    assert found.rounds > 10
    assert 0.4 < found.ratio <= 0.5 * (1 + 1e-5)


@pytest.mark.slow
def test_vgg16_needs_about_thirty_rounds() -> None:
    ratios = {
        rounds: largest_ratio(
            VGG(16), SynFlow(), 0.01, rounds, "exponential", input_shape=(3, 32, 32)
        ).ratio
        for rounds in (20, 32)
    }
    assert ratios[32] < 1 < ratios[20]


@pytest.fixture(scope="module")
def vgg19() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.vgg19()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exponent", "published"),
    [(0.5, 0.80), (1, 3.32), (1.5, 8.15), (2, 11.44), (2.5, 13.77), (3, 15.35)],
    ids=lambda x: f"{x:g}",
)
def test_the_ratio_of_one_round_on_imagenets_vgg19_is_the_published_one(
    vgg19: nn.Module, exponent: float, published: float
) -> None:
    found = largest_ratio(vgg19, SynFlow(), 10**-exponent, 1, "exponential", input_shape=IMAGENET)
    assert found.ratio == pytest.approx(published, rel=0.01)


@pytest.mark.slow
def test_imagenets_vgg19_needs_between_40_and_50_exponential_rounds(vgg19: nn.Module) -> None:
    ratios = {
        rounds: largest_ratio(
            vgg19, SynFlow(), 0.01, rounds, "exponential", input_shape=IMAGENET
        ).ratio
        for rounds in (40, 50)
    }
    assert ratios[50] < 1 < ratios[40]


@pytest.mark.slow
def test_100_linear_rounds_are_too_few_for_imagenets_vgg19(vgg19: nn.Module) -> None:
    assert largest_ratio(
        vgg19, SynFlow(), 0.01, 100, "linear", input_shape=IMAGENET
    ).ratio == pytest.approx(5.8, rel=0.01)
