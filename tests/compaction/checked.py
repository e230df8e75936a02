"""Comparison of a compacted network with the pruned network, with randomised parameters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from synflow_pl import Compaction, Masks, compact
from synflow_pl.flow import example_of
from tests.compaction.randomize import randomize, spread


class Checked(NamedTuple):
    """A compaction and the differences of its outputs, relative to the largest output.

    Attributes:
        compaction: The compaction in double precision.
        double: Largest difference between both networks in double precision.
        single: Largest difference between both networks in single precision.
        spread: Largest standard deviation of an output over the images.
    """

    compaction: Compaction
    double: float
    single: float
    spread: float

    def hold(self) -> None:
        """Assert that the outputs agree and are not constant."""
        assert self.spread > 1e-6
        assert self.double <= min(1e-10, 1e-4 * self.spread)
        assert self.single <= min(1e-5, 0.1 * self.spread)
        assert not any("nothing was taken out" in note for note in self.compaction.notes)


@torch.no_grad()
def check(network: nn.Module, masks: Masks, shape: tuple[int, ...], count: int = 16) -> Checked:
    """Randomise a network, compact it in double and in single precision, and compare outputs.

    Args:
        network: Network in double precision, which is changed.
        masks: Masks of the network.
        shape: Shape (C, H, W) of an image.
        count: Number of images.
    """
    images = torch.randn(count, *shape, dtype=torch.float64)
    randomize(network, masks, images)
    network.eval()
    expected = network(images)
    compaction = Compaction(network, masks, example_of(network, shape, None))
    double = float((expected - compaction.network.eval()(images)).abs().max())
    network.float()
    small = compact(network, masks, input_shape=shape).eval()
    single = float((network(images.float()) - small(images.float())).abs().max())
    largest = float(expected.abs().max()) or 1.0
    return Checked(compaction, double / largest, single / largest, spread(expected) / largest)


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
