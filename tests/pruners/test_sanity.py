from __future__ import annotations

import pytest
import torch
from torch import nn

from synflow_pl import prune
from synflow_pl.networks import FC
from synflow_pl.pruners import Inverted, Magnitude, Reinitialised, Shuffled, SynFlow


def test_an_inverted_pruner_keeps_the_smallest_of_the_weights_left_in_each_round() -> None:
    network = nn.Linear(6, 1, bias=False)
    network.weight.data = torch.tensor([[3.0, -1.0, 6.0, 2.0, -5.0, 4.0]])
    masks = prune(network, Inverted(Magnitude()), num_kept=2, rounds=3)
    # Removed weights are zero and have the smallest magnitude, yet they do not come back.
    assert masks["weight"].tolist() == [[False, True, False, True, False, False]]


def test_synflow_and_inverted_synflow_keep_complementary_weights_in_one_round() -> None:
    torch.manual_seed(0)
    kept = prune(FC(depth=3), SynFlow(), density=0.5, rounds=1, input_shape=(1, 28, 28))
    torch.manual_seed(0)
    other = prune(
        FC(depth=3),
        Inverted(SynFlow()),
        density=0.5,
        rounds=1,
        input_shape=(1, 28, 28),
        on_collapse="ignore",
    )
    assert all(torch.equal(other[name], ~mask) for name, mask in kept.items())


def test_shuffled_masks_keep_the_number_of_weights_of_each_layer_at_other_positions() -> None:
    torch.manual_seed(0)
    kept = prune(FC(depth=3), SynFlow(), density=0.1, rounds=5, input_shape=(1, 28, 28))
    torch.manual_seed(0)
    network = FC(depth=3)
    dense = {name: parameter.clone() for name, parameter in network.named_parameters()}
    shuffled = prune(
        network, Shuffled(SynFlow(), seed=3), density=0.1, rounds=5, input_shape=(1, 28, 28)
    )
    for name, mask in kept.items():
        assert int(shuffled[name].sum()) == int(mask.sum())
        share = float((shuffled[name] & mask).sum() / mask.sum())
        assert share == pytest.approx(float(mask.float().mean()), abs=0.1)
        assert torch.equal(network.get_parameter(name), dense[name] * shuffled[name])


def test_reinitialised_weights_have_the_same_masks_and_the_distribution_of_their_layer() -> None:
    torch.manual_seed(0)
    kept = prune(FC(depth=3), SynFlow(), density=0.5, rounds=5, input_shape=(1, 28, 28))
    torch.manual_seed(0)
    network = FC(depth=3)
    dense = {name: parameter.clone() for name, parameter in network.named_parameters()}
    masks = prune(
        network, Reinitialised(SynFlow(), seed=3), density=0.5, rounds=5, input_shape=(1, 28, 28)
    )
    for name, mask in masks.items():
        assert torch.equal(mask, kept[name])
        new = network.get_parameter(name)
        assert not new[~mask].any()
        assert torch.isin(new[mask], dense[name]).all()
        # SynFlow keeps large weights. The new ones are independent of the masks and distributed as
        # those of the dense layer.
        if mask.sum() > 1000:
            assert float(new[mask].std()) == pytest.approx(float(dense[name].std()), rel=0.05)
            assert float(dense[name][mask].abs().mean()) > 1.08 * float(new[mask].abs().mean())


def test_a_wrapper_has_the_requirements_of_its_pruner() -> None:
    wrapper = Shuffled(SynFlow())
    assert (wrapper.rounds, wrapper.needs_input, wrapper.needs_batches, wrapper.regrows) == (
        100,
        True,
        False,
        False,
    )
