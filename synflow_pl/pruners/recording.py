"""Watched: a pruner that is looked at while it prunes, for whoever draws what happened."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from synflow_pl.flow import Block
from synflow_pl.pruners.around import PrunerWrapper
from synflow_pl.pruners.base import Pruner, PruningState, Saliency

__all__ = ["RecordingPruner"]


class RecordingPruner(PrunerWrapper):
    """Does what another pruner does, and remembers what came of it. It costs one count of the masks
    a round.

    Args:
        pruner: the other; it keeps its notes.
        rounds: that there will be, at least 1; ``None`` is the pruner's own number.

    Attributes:
        kept: by parameter name, how many weights lived before the first round and after each.
        scores: by parameter name, in the weight's shape, those that decided the last round; zero
            where a weight did not compete in it.
    """

    def __init__(self, pruner: Pruner, rounds: int | None = None) -> None:
        super().__init__(pruner)
        self.rounds = pruner.rounds if rounds is None else rounds
        self.kept: dict[str, list[int]] = {}
        self.scores: dict[str, Tensor] = {}

    @property
    def name(self) -> str:
        return self.pruner.name

    def prepare(self, subject: PruningState) -> None:
        super().prepare(subject)
        self.kept, self.scores = {name: [] for name in subject.masks}, {}

    def score(self, subject: PruningState) -> Mapping[str, Tensor | Saliency]:
        self._count(subject)
        scores = super().score(subject)
        if len(next(iter(self.kept.values()))) == self.rounds:
            self.scores = {
                name: _whole(subject, name, score, alive=not self.regrows)
                for name, score in scores.items()
            }
        return scores

    def finish(self, subject: PruningState) -> None:
        super().finish(subject)
        self._count(subject)
        self.pruner.notes = self.notes

    def after(self, earlier: RecordingPruner | None) -> RecordingPruner:
        """The whole of a pruning of which ``earlier`` saw the rounds before. One that saw none does
        not count.
        """
        if earlier is None or not earlier.kept:
            return self
        if not self.kept:
            return earlier
        self.kept = {name: earlier.kept[name] + counts[1:] for name, counts in self.kept.items()}
        return self

    def _count(self, subject: PruningState) -> None:
        if self.kept:
            left = torch.stack([subject.masks[name].count_nonzero() for name in self.kept]).tolist()
            for counts, count in zip(self.kept.values(), left, strict=True):
                counts.append(count)


def _whole(subject: PruningState, name: str, score: Tensor | Saliency, *, alive: bool) -> Tensor:
    """A score multiplied out, in the shape of the whole weight, in a tensor of its own."""
    product = score.weight * score.gradient if isinstance(score, Saliency) else score.detach()
    mask = subject.masks[name]
    if (block := subject.blocks.get(name)) is not None:
        product = _spread(product, block, mask.shape)
    return torch.where(mask, product, 0) if alive else product.clone()


def _spread(part: Tensor, block: Block, shape: torch.Size) -> Tensor:
    rows = part.new_zeros(len(block.units), *shape[1:]).index_copy_(1, block.inputs, part)
    return part.new_zeros(shape).index_copy_(0, block.units, rows)
