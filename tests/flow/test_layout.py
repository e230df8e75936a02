"""Memory layout: autograd returns gradients in any layout, and scores do not depend on it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synflow_pl import prune
from synflow_pl.flow import LinearNetwork, example_of, linearise, magnitude
from synflow_pl.pruners import SNIP, SynFlow


class Decoder(nn.Module):
    """Few positions, upsampling, then a convolution whose gradient has the channels-last layout."""

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.up = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.up(F.interpolate(F.relu(self.down(x)), scale_factor=4))))


def weights(linear_network: LinearNetwork, network: nn.Module) -> dict[str, Tensor]:
    parameters = dict(network.named_parameters())
    return {name: magnitude(parameters[name]) for name in linear_network.weights}


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (4, 4), (8, 2), (16, 16)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_decoder_is_pruned_to_the_exact_density_at_every_size_and_in_every_layout(
    size: tuple[int, int], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    network = Decoder().double()
    arranged = copy.deepcopy(network).to(memory_format=layout)
    expected = prune(network, SynFlow(), density=0.1, rounds=4, input_shape=(3, *size))
    masks = prune(arranged, SynFlow(), density=0.1, rounds=4, input_shape=(3, *size))
    assert masks.kept == masks.total - int(0.9 * masks.total)
    assert all(torch.equal(masks[name], mask) for name, mask in expected.items())


class Summed(nn.Module):
    """A network whose gradients are shared and expanded, since it sums weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5, bias=False), nn.Linear(6, 5, bias=False)
        self.last = nn.Linear(5, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x, self.first.weight + self.second.weight)
        return F.relu(hidden).sum(1, keepdim=True) * self.last.weight.sum()


def test_each_gradient_has_memory_of_its_own() -> None:
    network = Summed()
    linear_network = linearise(network, example_of(network, (6,), None))
    gradients = linear_network.gradients(weights(linear_network, network))
    right = {name: gradient.clone() for name, gradient in gradients.items()}
    assert right.keys() == dict(network.named_parameters()).keys()
    for name, gradient in gradients.items():
        gradient.fill_(-1)
        gradient.copy_(right[name])
        gradients[name].mul_(2)
        assert all(
            torch.equal(other, right[key]) for key, other in gradients.items() if key != name
        ), name
        gradient.copy_(right[name])


@pytest.mark.parametrize("pruner", [SynFlow(), SNIP()], ids=lambda pruner: pruner.name)
def test_a_weight_whose_gradient_is_expanded_is_pruned(pruner: SynFlow | SNIP) -> None:
    torch.manual_seed(0)

    class Expanded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.last = nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.enter(x) * self.last.weight.sum()

    batches = [(torch.randn(8, 6), torch.randint(5, (8,)))]
    masks = prune(Expanded(), pruner, density=0.5, rounds=3, input_shape=(6,), batches=batches)
    assert masks.kept == masks.total - int(0.5 * masks.total)
