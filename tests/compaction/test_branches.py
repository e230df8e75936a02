"""Tests of networks whose forward pass branches on the values of tensors.

Such a network may compute something else on other values, so nothing is removed, and a note or an
error gives the reason.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor, nn

from synflow_pl import Compaction, compact
from synflow_pl.compaction import freeze
from tests.compaction.test_outputs import random_masks

Give = Callable[["Exit", Tensor, Tensor], Tensor]


class Exit(nn.Module):
    """A network with an early exit, whose forward pass ends with ``give``."""

    def __init__(self, give: Give) -> None:
        super().__init__()
        self.body, self.exit, self.deep, self.last = (
            nn.Linear(8, 32),
            nn.Linear(32, 4),
            nn.Linear(32, 32),
            nn.Linear(32, 4),
        )
        self.give = give
        self.register_buffer("limit", torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).relu()
        return self.give(self, h, self.exit(h))

    def more(self, h: Tensor) -> Tensor:
        return self.last(self.deep(h).relu())


def loop(network: Exit, h: Tensor, early: Tensor) -> Tensor:
    while early.abs().max() > 1e4:
        early = early / 2 + network.more(h) / 1e6
    return early


def repeat(network: Exit, h: Tensor, early: Tensor) -> Tensor:
    for _ in range(int(early.abs().max() > 100)):
        h = network.deep(h).relu()
    return network.last(h)


READS: dict[str, tuple[Give, str]] = {
    "if": (lambda n, h, y: y if y.abs().max() < 100 else n.more(h), "_local_scalar_dense"),
    "cond": (
        lambda n, h, y: torch.cond(
            y.abs().max() < 100, lambda h, y: y * 1, lambda h, y: n.more(h), (h, y)
        ),
        "_local_scalar_dense",
    ),
    "item": (lambda n, h, y: y if y.sum().item() < 100 else n.more(h), "_local_scalar_dense"),
    "while": (loop, "_local_scalar_dense"),
    "range": (repeat, "_local_scalar_dense"),
    "any": (lambda n, h, y: n.more(h) if (y > 100).any() else y, "_local_scalar_dense"),
    "an index": (
        lambda n, h, y: (n.exit, n.last)[int(y.abs().max() > 100)](h),
        "_local_scalar_dense",
    ),
    "nonzero": (lambda n, h, y: n.more(h) if len((y > 100).nonzero()) else y, "nonzero"),
    "a mask": (lambda n, h, y: n.more(h) if len(y[y > 100]) else y, "index"),
    "masked_select": (
        lambda n, h, y: n.more(h) if len(y.masked_select(y > 100)) else y,
        "masked_select",
    ),
    "unique": (lambda n, h, y: n.more(h) if len(torch.unique(y > 100)) > 1 else y, "_unique2"),
    "equal": (lambda n, h, y: y if torch.equal(y, y.clamp(max=100)) else n.more(h), "equal"),
    "allclose": (
        lambda n, h, y: y if torch.allclose(y, y.clamp(max=100)) else n.more(h),
        "allclose",
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("how", READS)
def test_nothing_is_removed_from_a_network_that_branches_on_values(
    how: str, training: bool
) -> None:
    give, operation = READS[how]
    torch.manual_seed(0)
    network = Exit(give).eval()
    masks = random_masks(network, 0.1)
    compaction = Compaction(network, masks, (torch.ones(1, 8),), training=training)
    assert compaction.notes == (
        "nothing was taken out: Exit.forward reads values of tensors that depend on its input"
        f" ({operation}), and may take another branch on other values",
    )
    masks.apply(network)
    for x in (torch.randn(3, 8), 1e5 * torch.randn(3, 8)):
        assert torch.equal(compaction.network(x), network(x))


@pytest.mark.parametrize("read", [Tensor.tolist, Tensor.numpy, numpy.asarray])
def test_a_network_that_converts_tensors_to_lists_or_arrays_is_an_error(
    read: Callable[[Tensor], object],
) -> None:
    network = Exit(lambda n, h, y: y if numpy.max(read(y.detach())) < 100 else n.more(h)).eval()
    with pytest.raises(
        ValueError,
        match=r"Exit.forward reads values of tensors by Tensor\.\w+, so it may take another branch",
    ):
        compact(network, random_masks(network), torch.ones(1, 8))


def test_units_are_removed_from_a_network_that_reads_only_constants() -> None:
    network = Exit(
        lambda n, h, y: (
            y * n.limit.item() if h.shape[1] > 0 and n.exit.bias.sum() < 100 else n.more(h)
        )
    ).eval()
    masks = random_masks(network, 0.1)
    small = compact(network, masks, torch.ones(1, 8))
    assert small.body.out_features < 32
    masks.apply(network)
    x = torch.randn(3, 8)
    torch.testing.assert_close(small(x), network(x))


def test_no_bias_is_frozen_in_a_network_that_branches_on_values() -> None:
    network = Exit(lambda n, h, y: y if y.abs().max() < 100 else n.more(h)).eval()
    masks = random_masks(network, 0.1)
    masks["body.weight"][:16] = False
    assert not freeze(network, masks, (torch.ones(1, 8),)).followers
    straight = Exit(lambda n, h, y: y)
    assert freeze(straight, masks, (torch.ones(1, 8),)).followers
