"""Tests of scores, flow and conservation against results by hand and known theory.

The theory is Theorem 2 of Tanaka et al. 2020.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from synflow_pl import Masks, diagnose, prune
from synflow_pl.networks import VGG, Conv, ResNet
from synflow_pl.prunable_parameters import prunable
from synflow_pl.pruners import Magnitude, SynFlow
from tests.textbook import first_scores


def dense(network: nn.Module) -> Masks:
    return Masks(
        {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(network).items()}
    )


def chain() -> nn.Module:
    """Return a network whose flow is (1, 1) -> (3, 7) -> 5 * 3 + 6 * 7 = 57."""
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    network[0].weight.data = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    network[2].weight.data = torch.tensor([[-5.0, 6.0]])
    return network


def test_a_score_is_the_weight_times_the_flow_before_and_after_it() -> None:
    first, last = diagnose(chain(), dense(chain()), input_shape=(2,)).layers
    # Scores: 1 * 5, 2 * 5, 3 * 6, 4 * 6 in the first layer; 5 * 3, 6 * 7 in the last.
    assert (first.score_sum, first.score_mean) == (57, 57 / 4)
    assert first.score_variance == pytest.approx((5**2 + 10**2 + 18**2 + 24**2) / 4 - (57 / 4) ** 2)
    assert (last.score_sum, last.score_mean, last.score_variance) == (57, 57 / 2, 13.5**2)
    assert (first.flow, last.flow) == (1, 1)


def test_score_statistics_are_over_the_kept_weights_of_the_pruned_network() -> None:
    masks = Masks(
        {
            "0.weight": torch.tensor([[True, False], [True, True]]),
            "2.weight": torch.tensor([[True, False]]),
        }
    )
    first, last = diagnose(chain(), masks, input_shape=(2,)).layers
    # The flow is 1 * 5. The two kept weights of the second unit carry no flow.
    assert (first.score_sum, first.score_mean, first.flow) == (5, pytest.approx(5 / 3), 1)
    assert (last.score_sum, last.score_mean, last.score_variance) == (5, 5, 0)


def test_the_diagnosis_does_not_depend_on_whether_masks_were_applied_to_the_network() -> None:
    network = Conv()
    masks = Masks({name: torch.rand(w.shape) < 0.3 for name, w in prunable(network).items()})
    before = diagnose(network, masks, input_shape=(1, 28, 28))
    masks.apply(network)
    assert diagnose(network, masks, input_shape=(1, 28, 28)) == before


class Branches(nn.Module):
    """A network of two branches with a quarter and three quarters of the flow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.three, self.head = (nn.Linear(1, 1, bias=False) for _ in range(4))
        for layer, weight in (
            (self.stem, 2.0),
            (self.one, 1.0),
            (self.three, -3.0),
            (self.head, 5.0),
        ):
            nn.init.constant_(layer.weight, weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.one(x) + self.three(x))


def test_parallel_branches_share_the_flow() -> None:
    diagnosis = diagnose(Branches(), dense(Branches()), input_shape=(1,))
    assert [layer.flow for layer in diagnosis.layers] == [1, 0.25, 0.75, 1]
    assert [layer.score_sum for layer in diagnosis.layers] == [40, 10, 30, 40]
    assert diagnosis.conservation_error == 0  # over the stem and the head


def test_a_layer_that_is_used_twice_on_a_path_has_flow_two() -> None:
    layer = nn.Linear(1, 1, bias=False)
    network = nn.Sequential(layer, layer)
    (result,) = diagnose(network, dense(network), input_shape=(1,)).layers
    assert result.flow == 2


def test_queries_and_keys_carry_no_flow() -> None:
    class Attend(nn.MultiheadAttention):
        def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(tokens, tokens, tokens, need_weights=False)[0]

    network = Attend(4, 2, batch_first=True)
    diagnosis = diagnose(network, dense(network), input_shape=(3, 4))
    assert [layer.flow for layer in diagnosis.layers] == pytest.approx([1, 1])
    assert diagnosis.inhomogeneous == {"Attend": "attention"}


@pytest.mark.parametrize("network", [VGG(11), ResNet(20)], ids=["vgg11", "resnet20"])
def test_rescaling_of_the_flow_does_not_change_the_scores(
    network: nn.Module,
) -> None:
    network = network.double()
    diagnosis = diagnose(network, dense(network), input_shape=(3, 32, 32))
    expected = first_scores(network, (3, 32, 32))
    for layer in diagnosis.layers:
        assert layer.score_sum == pytest.approx(float(expected[layer.name].sum()), rel=1e-10)
        assert layer.score_variance == pytest.approx(
            float(expected[layer.name].var(correction=0)), rel=1e-9
        )


def test_shares_of_flow_are_exact_where_scores_exceed_double_precision(tmp_path: Path) -> None:
    network = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(400)))
    for layer in network:
        nn.init.constant_(layer.weight, 100.0)
    diagnosis = diagnose(network, dense(network), input_shape=(8,))
    assert all(layer.flow == pytest.approx(1, rel=1e-12) for layer in diagnosis.layers)
    assert diagnosis.layers[0].score_sum == math.inf  # 800 ** 400
    diagnosis.to_json(tmp_path / "diagnosis.json")
    content = json.loads((tmp_path / "diagnosis.json").read_text(), parse_constant=pytest.fail)
    assert content["layers"][0]["score_sum"] is None  # JSON has no infinity


# -- conservation


@pytest.mark.parametrize("pruner", [SynFlow(), Magnitude()])
@pytest.mark.parametrize(
    ("network", "shape"), [(VGG(11), (3, 32, 32)), (ResNet(20), (3, 32, 32)), (Conv(), (1, 28, 28))]
)
def test_synaptic_flow_is_conserved_in_pruned_networks(
    pruner: SynFlow | Magnitude, network: nn.Module, shape: tuple[int, ...]
) -> None:
    masks = prune(network, pruner, density=0.2, rounds=3, input_shape=shape)
    assert diagnose(network, masks, input_shape=shape).conservation_error < 1e-12


def test_other_scores_are_not_conserved_and_the_error_is_their_coefficient_of_variation() -> None:
    magnitudes = {name: w.detach().abs() for name, w in prunable(chain()).items()}
    diagnosis = diagnose(chain(), dense(chain()), input_shape=(2,), scores=magnitudes)
    # The sums of the layers are 10 and 11: mean 10.5, standard deviation 0.5.
    assert [layer.score_sum for layer in diagnosis.layers] == [10, 11]
    assert diagnosis.conservation_error == pytest.approx(0.5 / 10.5)
    assert [layer.flow for layer in diagnosis.layers] == [
        1,
        1,
    ]  # `flow` is always about SynFlow's scores


def test_the_conservation_error_leaves_out_layers_that_are_parallel() -> None:
    scores = {
        name: torch.full((1, 1), score)
        for name, score in zip(dense(Branches()), (4.0, 1.0, 100.0, 4.0), strict=True)
    }
    assert (
        diagnose(Branches(), dense(Branches()), input_shape=(1,), scores=scores).conservation_error
        == 0
    )


def test_scores_that_do_not_fit_the_masks_raise_an_error_that_names_the_parameter() -> None:
    with pytest.raises(
        ValueError, match=r"scores: there are none of '2.weight'; give those of every masked weight"
    ):
        diagnose(chain(), dense(chain()), input_shape=(2,), scores={"0.weight": torch.ones(2, 2)})
    with pytest.raises(
        ValueError, match=r"scores: those of '0.weight' have shape \(2,\), its mask \(2, 2\)"
    ):
        diagnose(
            chain(),
            dense(chain()),
            input_shape=(2,),
            scores={"0.weight": torch.ones(2), "2.weight": torch.ones(1, 2)},
        )
