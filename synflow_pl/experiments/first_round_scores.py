"""Scores of a network before anything is pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from synflow_pl.flow import acting_on
from synflow_pl.pruners import Pruner, PruningState, Saliency
from synflow_pl.pruners.batch_loss import as_batch_loss
from synflow_pl.schedules import as_density

__all__ = ["first_scores", "lowest_and_sum"]

_PIECE = 1 << 22


def first_scores(
    network: nn.Module,
    pruner: Pruner,
    inputs: tuple[Tensor, ...],
    *,
    batches: Sequence[tuple[Tensor, Tensor]] = (),
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    density: float | Fraction = 1.0,
    exclude: Iterable[str | type[nn.Module]] = (),
    include: Iterable[str | type[nn.Module]] = (),
    train_mode: bool = False,
) -> dict[str, Tensor]:
    """Return the scores that the first round of a pruning would compute.

    Args:
        network: Network under study, which is left unchanged.
        pruner: Pruner that computes the scores.
        inputs: Example inputs of the network, as :func:`synflow_pl.flow.example_of` returns them.
        batches: Pairs of images (N, C, H, W) and labels (N,), for data-driven pruners.
        loss: Function of logits and labels that returns the mean loss of a batch, for data-driven
            pruners.
        density: Density of the pruning, in (0, 1], for pruners whose scores depend on it.
        exclude: Parameters that are not scored; see :func:`synflow_pl.prune`.
        include: Further parameters that are scored; see :func:`synflow_pl.prune`.
        train_mode: Whether the network is in train mode while data-driven pruners score.

    Returns:
        Scores by parameter name, in the weight's shape; signed if the pruner's are. Weights that
        carry no flow by construction (queries, keys, gates) have no comparable score: they are
        zero, and a parameter of only such weights is left out.

    Raises:
        ValueError: If the pruner needs data and there are no batches.
    """
    state = PruningState.from_network(network, exclude, include, acting_on(network, inputs))
    state.inputs, state.batches, state.loss = inputs, batches, as_batch_loss(loss)
    state.density, state.train_mode = as_density(density), train_mode
    if pruner.needs_batches and not batches:
        raise ValueError(
            f"{type(pruner).__name__} scores on data: give batches=, a list of (images, labels)"
            " pairs"
        )
    pruner.prepare(state)
    scores = {}
    for name, score in pruner.score(state).items():
        separate = state.ranked_separately.get(name)
        if separate is None or not bool(separate.all()):
            ranked = (
                score.weight * score.gradient
                if isinstance(score, Saliency)
                else score.detach().clone()
            )
            scores[name] = ranked if separate is None else ranked.masked_fill_(separate, 0)
    return scores


def lowest_and_sum(score: Tensor | Saliency, mask: Tensor) -> tuple[float, float]:
    """Return the minimum of 0 and the scores under a mask, and their sum in float64.

    Args:
        score: Scores of one parameter.
        mask: Boolean tensor in the score's shape; scores where it is False are ignored.
    """
    weight, gradient = score if isinstance(score, Saliency) else (score, None)
    # A few rows at a time, which avoids a copy of a large layer.
    rows = max(1, _PIECE // max(1, mask[0].numel()))
    lowest, total = 0.0, 0.0
    for start in range(0, len(mask), rows):
        here = slice(start, start + rows)
        part = weight[here] if gradient is None else weight[here] * gradient[here]
        part = torch.where(mask[here], part, 0)
        lowest = min(lowest, float(part.min()))
        total += float(part.sum(dtype=torch.float64))
    return lowest, total
