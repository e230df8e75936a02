"""Warnings and errors of prune() for networks without a path from input to output."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from synflow_pl import Masks, diagnose, prune
from synflow_pl.diagnosis import DeadNetwork
from synflow_pl.pruners import SNIP, Magnitude, Pruner, Random, SynFlow

DEAD = "the network is dead: no path of kept weights leads from input to output"


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    )


BATCHES = [
    (torch.rand(4, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3]))
]


@pytest.mark.parametrize("pruner", [SynFlow, Magnitude, Random, SNIP])
def test_a_disconnected_network_gives_a_warning_by_default_for_every_pruner(
    pruner: type[Pruner],
) -> None:
    network = chain()
    with pytest.warns(UserWarning, match=f"^{pruner.__name__}: {DEAD}"):
        # Two weights cannot connect three layers.
        masks = prune(network, pruner(), num_kept=2, rounds=1, input_shape=(8,), batches=BATCHES)
    assert not diagnose(network, masks, input_shape=(8,)).alive
    assert (
        sum(int(layer.weight.count_nonzero()) for layer in network if isinstance(layer, nn.Linear))
        == 2
    )


def test_the_warning_points_at_the_line_that_calls_prune() -> None:
    with pytest.warns(UserWarning, match=DEAD) as caught:
        prune(chain(), Magnitude(), num_kept=2, input_shape=(8,))
    assert caught[0].filename == __file__


def test_a_collapse_that_is_an_error_leaves_the_network_dense() -> None:
    network = chain()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(DeadNetwork, match=DEAD):
        prune(network, Magnitude(), num_kept=2, input_shape=(8,), on_collapse="error")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_no_warning_if_it_is_disabled_or_the_network_is_connected() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(chain(), Magnitude(), num_kept=2, input_shape=(8,), on_collapse="ignore")
        prune(chain(), SynFlow(), num_kept=3, input_shape=(8,))
        prune(chain(), Magnitude(), density=0.5)


def test_the_first_batch_serves_as_the_example_input_of_the_collapse_check() -> None:
    with pytest.warns(UserWarning, match=DEAD):
        prune(chain(), SNIP(), num_kept=2, batches=BATCHES)


def test_an_empty_layer_gives_a_warning_without_an_example_input() -> None:
    with pytest.warns(
        UserWarning,
        match="layers with no weight left: .*; give input_shape= or example_input= to learn"
        " whether a path",
    ):
        prune(chain(), Magnitude(), num_kept=2)


def test_a_disconnected_network_with_gates_gives_a_warning() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.GLU(), nn.Linear(4, 4), nn.GLU(), nn.Linear(2, 2))
    with pytest.warns(UserWarning, match=DEAD):
        prune(network, Magnitude(), num_kept=2, input_shape=(8,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"on_collapse": "warm"},
            "on_collapse: 'warm' is not one of warn, error, ignore; did you mean 'warn'?",
        ),
        (
            {"on_collapse": "error"},
            "on_collapse='error' has to see whether a path is left: give input_shape",
        ),
    ],
)
def test_an_impossible_collapse_option_is_an_error_before_pruning(
    options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        prune(chain(), Magnitude(), num_kept=2, **options)  # type: ignore[arg-type]


def test_a_collapse_check_that_fails_is_noted_if_the_pruner_does_not_depend_on_it() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.ones_like(x)).detach()

    pruner = Magnitude()
    masks = prune(Constant(), pruner, density=0.5, input_shape=(8,))
    assert isinstance(masks, Masks)
    assert any(
        "could not be checked: no output of Constant depends on its input" in note
        for note in pruner.notes
    )
