"""Scores: what a pruner thinks of a network of which nothing has been removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from synflow_pl.pruners import Pruner, PruningState, Saliency
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
    exclude: Iterable[str] = (),
    train_mode: bool = False,
) -> dict[str, Tensor]:
    """The scores that the first round of a pruning would see. The network stays as it is.

    Args:
        network: the network under study.
        pruner: gives the scores.
        inputs: an example of the network's inputs, as :func:`synflow_pl.flow.example_of` gives it.
        batches: (images (N, C, H, W), labels (N,)) pairs, for data-driven pruners.
        loss: (logits, labels) to the mean loss of a batch, for data-driven pruners.
        density: that the pruning would leave, in (0, 1]; for pruners with quotas and walks.
        exclude: shell-style patterns of parameter names that are not scored.
        train_mode: score in train mode, for data-driven pruners.

    Returns:
        By parameter name, in the weight's shape; signed, if the pruner's are. What no flow can pass
        (queries, keys, gates) has no score
        that could be compared with others: it is zero, or left out where that is all of a
            parameter.

    Raises:
        ValueError: if the pruner needs data and there is none.
    """
    subject = PruningState.of(network, exclude)
    subject.inputs, subject.batches, subject.loss = inputs, batches, loss
    subject.density, subject.train_mode = as_density(density), train_mode
    if pruner.needs_batches and not batches:
        raise ValueError(
            f"{type(pruner).__name__} scores on data: give batches=, a list of (images, labels)"
            " pairs"
        )
    pruner.prepare(subject)
    found = {}
    for name, score in pruner.score(subject).items():
        apart = subject.ranked_separately.get(name)
        if apart is None or not bool(apart.all()):
            written = (
                score.weight * score.gradient
                if isinstance(score, Saliency)
                else score.detach().clone()
            )
            found[name] = written if apart is None else written.masked_fill_(apart, 0)
    return found


def lowest_and_sum(score: Tensor | Saliency, mask: Tensor) -> tuple[float, float]:
    """Of the scores where ``mask`` is True, in the score's shape: the lowest (or 0, if that is
    less), and the sum, in float64.
    """
    weight, gradient = score if isinstance(score, Saliency) else (score, None)
    # A few rows at a time, so that no copy of a large layer is made.
    rows = max(1, _PIECE // max(1, mask[0].numel()))
    lowest, total = 0.0, 0.0
    for start in range(0, len(mask), rows):
        here = slice(start, start + rows)
        part = weight[here] if gradient is None else weight[here] * gradient[here]
        part = torch.where(mask[here], part, 0)
        lowest = min(lowest, float(part.min()))
        total += float(part.sum(dtype=torch.float64))
    return lowest, total
