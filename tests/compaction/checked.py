"""Whether the smaller network does what the pruned one does, once nothing in it is at rest."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from synflow_pl import Compaction, Masks, compact
from synflow_pl.flow import example_of
from tests.compaction.randomize import randomize, spread


class Checked(NamedTuple):
    """What was done, and by how much the two networks differ in each precision and the output over
    inputs, of the largest output.
    """

    told: Compaction
    double: float
    single: float
    spread: float

    def hold(self) -> None:
        """Equal, and not because nothing reaches the output: a constant would not pass."""
        assert self.spread > 1e-6
        assert self.double <= min(1e-10, 1e-4 * self.spread)
        assert self.single <= min(1e-5, 0.1 * self.spread)
        assert not any("nothing was taken out" in note for note in self.told.notes)


@torch.no_grad()
def check(network: nn.Module, masks: Masks, shape: tuple[int, ...], count: int = 16) -> Checked:
    """Compact a network in double precision once nothing in it is at rest, and in single; it is
    changed. ``count`` images go in.
    """
    images = torch.randn(count, *shape, dtype=torch.float64)
    randomize(network, masks, images)
    network.eval()
    truth = network(images)
    told = Compaction(network, masks, example_of(network, shape, None))
    double = float((truth - told.network.eval()(images)).abs().max())
    network.float()
    small = compact(network, masks, input_shape=shape).eval()
    single = float((network(images.float()) - small(images.float())).abs().max())
    largest = float(truth.abs().max()) or 1.0
    return Checked(told, double / largest, single / largest, spread(truth) / largest)


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
