"""Small networks in double precision, and the scores that a pruner computes for them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from synflow_pl.flow import example_of
from synflow_pl.pruners import Pruner, PruningState
from synflow_pl.pruners.batch_loss import as_batch_loss


def small() -> nn.Module:
    """Return a network with 3 inputs, 4 hidden units and 2 classes: 20 weights."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def small_batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(n, 3, generator=generator, dtype=torch.float64),
            torch.randint(0, 2, (n,), generator=generator),
        )
        for n in (5, 2)
    ]


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return half the squared error, averaged over the images."""
    return (outputs.squeeze(1) - targets).square().mean() / 2


def scores(
    pruner: Pruner,
    network: nn.Module,
    batches: list[tuple[Tensor, Tensor]] = [],  # noqa: B006  never written to
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    *,
    masks: dict[str, Tensor] | None = None,
    density: Fraction = Fraction(1),
    input_shape: tuple[int, ...] | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Return the scores of a pruner in its first round, with given masks."""
    state = PruningState.from_network(network)
    state.batches, state.loss, state.density = batches, as_batch_loss(loss), density
    for name, value in options.items():
        setattr(state, name, value)
    if input_shape is not None:
        state.inputs = example_of(network, input_shape, None)
    state.masks.update(masks or {})
    if not pruner.regrows:
        for name, weight in state.weights.items():
            weight.mul_(state.masks[name])
    pruner.prepare(state)
    return {
        name: score if isinstance(score, Tensor) else score.weight * score.gradient
        for name, score in pruner.score(state).items()
    }
