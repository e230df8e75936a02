"""Ranking: weights that compete with each other, and the cut among them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from synflow_pl.flow import Block
from synflow_pl.order_statistics import (
    concatenated,
    nonzero_indices,
    smallest_mask,
    smallest_of_many,
)
from synflow_pl.pruners.base import PruningState, Saliency

__all__ = ["PruningGroup", "RegrowingGroup", "factor", "make_groups"]


def make_groups(
    subject: PruningState, names: list[str], ranking: type[PruningGroup]
) -> list[PruningGroup]:
    """One ranking of all weights of these names that compete with each other, then one for each
    name with weights apart.
    """
    together: dict[str, Tensor] = {}
    alone: list[PruningGroup] = []
    for name in names:
        alive = subject.masks[name].view(-1)
        if name in subject.ranked_separately:
            apart = subject.ranked_separately[name].view(-1)
            alone.append(ranking(subject, {name: apart & alive}))
            if apart.all():
                continue
            alive = alive & ~apart
        together[name] = alive
    return ([ranking(subject, together)] if together else []) + alone


class PruningGroup:
    """Weights that compete with each other, and which of them still can.

    Once weights have been removed they never compete again. Where the pruner can score a weight by
    its living block alone, the weight and what is kept about it are cut down to that block as units
    and inputs die, so the work shrinks with the survivors.

    Args:
        subject: whose weights they are.
        competing: by parameter name, (n,) bool over its flattened mask: True where a weight takes
            part. May be the mask itself.
    """

    # Looking for dead units pays where most of a weight is gone; with less gone, hardly a unit has
    # died.
    _BLOCK_AT = 0.3
    # And again each time this share of what was left then has died.
    _AGAIN_AT = 0.1

    def __init__(self, subject: PruningState, competing: Mapping[str, Tensor]) -> None:
        self.subject = subject
        self.names = list(competing)
        # In the order and number of what is left of each weight.
        self._competing = list(competing.values())
        self._alive = [int(marks.count_nonzero()) for marks in self._competing]
        self._looked = [marks.numel() for marks in self._competing]

    @property
    def alive(self) -> int:
        """How many of them live."""
        return sum(self._alive)

    def cut(self, scores: Mapping[str, Tensor | Saliency], keep: int) -> None:
        """Remove the lowest-scoring weights until ``keep`` are left."""
        if self.alive == 0:
            return  # a small part that competes apart may be gone before the last round
        parts = [_product(scores[name]) for name in self.names]
        if not bool(
            torch.stack([end for piece in concatenated(parts) for end in torch.aminmax(piece)])
            .isfinite()
            .all()
        ):
            raise FloatingPointError(self._not_finite(parts))
        count = self.alive - keep
        if _answers_at_once(parts[0].device):
            for index, gone in enumerate(
                smallest_of_many(parts, self._competing, self.alive, count)
            ):
                if gone.numel():
                    self._remove(index, gone)
                if self._is_thin(index):
                    self._cut_to_block(index, parts[index])
        else:
            for index, gone in enumerate(smallest_mask(parts, self._competing, count)):
                self._remove_marked(index, gone)
            self._alive = [
                keep,
                *[0] * (len(self.names) - 1),
            ]  # how they share it only a block asks, and here there are none

    def _not_finite(self, parts: list[Tensor]) -> str:
        name = next(
            name
            for name, part in zip(self.names, parts, strict=True)
            if not bool(part.isfinite().all())
        )
        return (
            f"the scores of {name!r} are not finite; the masks would be meaningless. Look for infinite weights there,"
            " or score in double precision (network.double())"
        )

    def _remove(self, index: int, gone: Tensor) -> None:
        """Remove weights of one parameter, by position (k,) within what is left of it."""
        name, marks = self.names[index], self._competing[index]
        self.subject.masks[name].view(-1).index_fill_(0, self._in_mask(name, gone), False)
        marks.index_fill_(0, gone, False)
        self.subject.weights[name].view(-1).index_fill_(0, gone, 0)
        self._alive[index] -= gone.numel()

    def _is_thin(self, index: int) -> bool:
        """Whether it is time to look for dead units of a weight."""
        left, size = self._alive[index], self._competing[index].numel()
        compressible = self.names[index] in self.subject.compressible
        return (
            compressible
            and left < self._BLOCK_AT * size
            and left <= (1 - self._AGAIN_AT) * self._looked[index]
        )

    def _remove_marked(self, index: int, gone: Tensor) -> None:
        """Remove weights of one parameter, marked (n,) bool."""
        name = self.names[index]
        self.subject.masks[name].view(-1).logical_and_(~gone)
        self._competing[index].logical_and_(~gone)
        self.subject.weights[name].view(-1).masked_fill_(gone, 0)

    def _in_mask(self, name: str, at: Tensor) -> Tensor:
        """Positions within what is left of a weight as positions within its mask."""
        if name not in self.subject.blocks:
            return at
        units, inputs = self.subject.blocks[name]
        mask = self.subject.masks[name]
        kernel = mask[0, 0].numel()
        row, within = at // (inputs.numel() * kernel), at % kernel
        column = at // kernel % inputs.numel()
        return (
            units.index_select(0, row) * mask.shape[1] + inputs.index_select(0, column)
        ) * kernel + within

    def _cut_to_block(self, index: int, spare: Tensor) -> None:
        """Cut a weight down to the units and inputs that still hold a living weight. ``spare``, of
        its size and kind, is written to.
        """
        name = self.names[index]
        self._looked[index] = self._alive[index]
        weight = self.subject.weights[name]
        marks = self._competing[index].view_as(weight)
        by_unit = marks.view(torch.uint8).flatten(
            1
        )  # of bytes a maximum is quicker than a disjunction
        units, inputs = (
            _present(by_unit.amax(1)),
            _present(by_unit.amax(0).view(weight.shape[1], -1).amax(1)),
        )
        size = marks[0, 0].numel() * units.numel() * inputs.numel()
        whole = self.subject.blocks.get(name)
        # The first time marks may be the mask itself, which stays whole, and they move into the
        # memory of the weight, behind the block.
        each = weight.element_size() + (whole is None)
        if size == weight.numel() or size * each > weight.nbytes:
            return
        self.subject.blocks[name] = Block(
            units if whole is None else whole.units.index_select(0, units),
            inputs if whole is None else whole.inputs.index_select(0, inputs),
        )
        self.subject.weights[name] = _picked(weight, units, inputs, spare, weight)
        room = (
            marks
            if whole is not None
            else weight.view(-1).view(torch.bool)[size * weight.element_size() :]
        )
        self._competing[index] = _picked(marks, units, inputs, spare.view(torch.bool), room).view(
            -1
        )


class RegrowingGroup(PruningGroup):
    """The same, for a pruner that regrows: every weight competes in every round, and weights stay
    as they are.
    """

    def __init__(self, subject: PruningState, competing: Mapping[str, Tensor]) -> None:
        super().__init__(subject, {name: marks.clone() for name, marks in competing.items()})

    def cut(self, scores: Mapping[str, Tensor | Saliency], keep: int) -> None:
        """Choose anew which ``keep`` weights live."""
        for name, marks in zip(self.names, self._competing, strict=True):
            self.subject.masks[name].view(-1).logical_or_(marks)
        self._alive = [int(marks.count_nonzero()) for marks in self._competing]
        super().cut(scores, keep)

    def _remove(self, index: int, gone: Tensor) -> None:
        self.subject.masks[self.names[index]].view(-1).index_fill_(0, gone, False)

    def _remove_marked(self, index: int, gone: Tensor) -> None:
        self.subject.masks[self.names[index]].view(-1).logical_and_(~gone)


def _answers_at_once(device: torch.device) -> bool:
    """Whether asking how many there are costs nothing; an accelerator would have to finish first
    what it has been given.
    """
    return device.type == "cpu"


def _picked(whole: Tensor, units: Tensor, inputs: Tensor, spare: Tensor, into: Tensor) -> Tensor:
    """These units and inputs of a weight or its marks, by way of ``spare`` to ``into``, which may
    be the whole: what is given back in pieces of ever other sizes leaves holes in memory that
    nothing fits in.
    """
    shape = (units.numel(), inputs.numel(), *whole.shape[2:])
    rows = torch.index_select(
        whole, 0, units, out=_within(spare, (units.numel(), *whole.shape[1:]))
    )
    return torch.index_select(rows, 1, inputs, out=_within(into, shape))


def _within(memory: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of this shape in the memory of one at least as large."""
    return memory.view(-1)[: math.prod(shape)].view(shape)


def _present(marks: Tensor) -> Tensor:
    """Which are not zero, ascending; at least one, so that nothing is empty."""
    present = nonzero_indices(marks.bool())
    return present if present.numel() else torch.zeros(1, dtype=torch.int64, device=marks.device)


def _product(score: Tensor | Saliency) -> Tensor:
    """A score multiplied out, flattened, in memory that may be written to; in place of its gradient
    where that is contiguous.
    """
    if isinstance(score, Saliency):
        return score.gradient.contiguous().view(-1).mul_(score.weight.reshape(-1))
    return score.contiguous().view(-1)


def factor(score: Tensor | Saliency) -> Tensor:
    """The part of a score that differs from round to round: all of it, or what its weight is
    multiplied by.
    """
    return score.gradient if isinstance(score, Saliency) else score
