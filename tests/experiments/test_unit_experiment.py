"""Conservation at hidden units, for scores that are conserved and scores that are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from synflow_pl.experiments import first_scores, unit_differences
from synflow_pl.flow import example_of, linearise, unit_sums
from synflow_pl.networks import FC, VGG, Conv, ResNet
from synflow_pl.pruners import SNIP, Magnitude, Pruner, PruningState, Random, SynFlow, SynFlowL2
from synflow_pl.pruners.forward import loss_gradients

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "fc": (lambda: FC((1, 4, 4), depth=4, width=12), (1, 4, 4)),
    "conv": (lambda: Conv((1, 8, 8), width=6), (1, 8, 8)),
    "vgg": (lambda: VGG(11, input_shape=(3, 16, 16)), (3, 16, 16)),
    "resnet": (lambda: ResNet(14), (3, 16, 16)),
    "depthwise": (lambda: torchvision.models.mobilenet_v2(width_mult=0.25), (3, 32, 32)),
}


class Saliency(Pruner):
    """Synaptic saliency of the loss, signed: w dL/dw (Tanaka et al. 2020, Equation 1)."""

    needs_batches = True

    def score(self, state: PruningState) -> dict[str, Tensor]:
        gradients = loss_gradients(state, state.weights)
        return {name: gradient * state.weights[name] for name, gradient in gradients.items()}


def differences(network: nn.Module, shape: tuple[int, ...], pruner: Pruner) -> Tensor:
    network = network.double()
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):  # the scores of weights do not include the flow through a bias
            parameter.data.zero_()
    inputs = example_of(network, shape, None)
    batches = [(torch.randn(8, *shape, dtype=torch.float64), torch.arange(8))]
    return unit_differences(
        unit_sums(
            linearise(network, inputs), first_scores(network, pruner, inputs, batches=batches)
        ).values()
    )


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pruner", [SynFlow, SynFlowL2, Saliency])
def test_synaptic_saliency_is_conserved_at_every_hidden_unit(
    name: str, pruner: type[Pruner]
) -> None:
    build, shape = NETWORKS[name]
    off = differences(build(), shape, pruner())
    assert len(off) > 5
    assert float(off.median()) < 1e-12
    # In a unit with almost no flow, signed contributions cancel up to rounding.
    assert float(off.max()) < (1e-6 if pruner is Saliency else 1e-10)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pruner", [Magnitude, Random, SNIP])
def test_magnitudes_are_not_conserved_at_hidden_units(name: str, pruner: type[Pruner]) -> None:
    build, shape = NETWORKS[name]
    assert float(differences(build(), shape, pruner()).max()) > 0.1


def test_the_difference_of_a_unit_is_relative_to_the_larger_sum() -> None:
    sums = [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])),
        (torch.tensor([3.0, 0.0, -1.0]), torch.tensor([-3.0, 0.0, -4.0])),
    ]
    assert unit_differences(sums).tolist() == [0, 0.5, 2, 0, 0.75]


def test_first_scores_of_a_pruner_that_needs_data_require_batches() -> None:
    network = FC((1, 4, 4), depth=3, width=4)
    with pytest.raises(ValueError, match="SNIP scores on data"):
        first_scores(network, SNIP(), example_of(network, (1, 4, 4), None))


def test_first_scores_leave_the_network_unchanged_and_share_no_memory_with_it() -> None:
    network = FC((1, 4, 4), depth=3, width=4)
    before = [parameter.clone() for parameter in network.parameters()]
    for score in first_scores(network, Magnitude(), example_of(network, (1, 4, 4), None)).values():
        score.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
