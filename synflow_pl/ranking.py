"""Ranking: weights that compete with each other, and the cut among them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from synflow_pl.flow import Block
from synflow_pl.pruners.pruner import Saliency, Subject
from synflow_pl.selection import smallest, where

__all__ = ["Ranking", "Regrowing", "compete", "factor"]


def compete(subject: Subject, names: list[str], ranking: type[Ranking]) -> list[Ranking]:
    """One ranking of all weights of these names that compete with each other, then one for each name with weights apart."""
    together: dict[str, Tensor | None] = {}
    alone: list[Ranking] = []
    for name in names:
        alive = subject.masks[name].view(-1)
        if name in subject.apart:
            apart = subject.apart[name].view(-1)
            alone.append(ranking(subject, {name: where(apart & alive).int()}))
            if apart.all():
                continue
            alive = alive & ~apart
        together[name] = None if bool(alive.all()) else where(alive).int()
    return ([ranking(subject, together)] if together else []) + alone


class Ranking:
    """Weights that compete with each other, and which of them still can.

    Once weights have been removed they never compete again, so the work shrinks with the survivors: every now and then the list is
    packed to the living, and between two packings the dead score infinity, which no cut takes.
    """

    # Packing costs several passes, the dead only the room they take; so the list is packed when this share of it has died.
    _PACK_AT = 0.25
    # Looking for dead units pays where most of a weight is gone; with less gone, hardly a unit has died.
    _BLOCK_AT = 0.25

    def __init__(self, subject: Subject, positions: Mapping[str, Tensor | None]) -> None:
        self.subject = subject
        self.names = names = list(positions)
        self._masks = [subject.masks[name].view(-1) for name in names]
        # Positions of those listed within each flattened mask, and within what is left of each flattened weight (its block); None while
        # all of it is.
        self._listed: list[Tensor | None] = list(positions.values())
        self._placed: list[Tensor | None] = list(positions.values())
        self.alive = sum(self._sizes)
        # Positions within the list of those that have died since it was packed.
        self._dead: list[Tensor] = []
        # Weights of those listed, where scores are products with them.
        self._weights: list[Tensor | None] = [None] * len(names)
        # Where listed scores are gathered: used again in each round, since fresh memory costs more than the gathering.
        self._gathered: Tensor | None = None

    def cut(self, scores: Mapping[str, Tensor | Saliency], keep: int) -> None:
        """Remove the lowest-scoring weights until ``keep`` are left."""
        if self.alive == 0:
            return  # a small part that competes apart may be gone before the last round
        listed = self._gather(scores)
        low, high = torch.aminmax(listed)
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise FloatingPointError(self._not_finite(listed))
        for dead in self._dead:
            listed.index_fill_(0, dead, torch.inf)
        self._remove(smallest(listed, self.alive - keep))
        self.alive = keep

    @property
    def _sizes(self) -> list[int]:
        return [mask.numel() if at is None else at.numel() for mask, at in zip(self._masks, self._listed, strict=True)]

    def _gather(self, scores: Mapping[str, Tensor | Saliency]) -> Tensor:
        if self._gathered is None:
            self._gathered = torch.empty(self.alive, dtype=factor(scores[self.names[0]]).dtype, device=self._masks[0].device)
        sizes = self._sizes
        listed = self._gathered[: sum(sizes)]
        for index, part in enumerate(listed.split(sizes)):
            at, score = self._placed[index], scores[self.names[index]]
            flat = factor(score).reshape(-1)
            if at is not None:
                torch.index_select(flat, 0, at, out=part)
                if isinstance(score, Saliency):
                    part.mul_(self._weight(index, score.weight))
            elif isinstance(score, Saliency):
                torch.mul(flat, score.weight.view(-1), out=part)
            else:
                part.copy_(flat)
        return listed

    def _weight(self, index: int, weight: Tensor) -> Tensor:
        """The listed weights; a survivor's weight does not change while it is listed."""
        packed = self._weights[index]
        if packed is None:
            at = self._placed[index]
            assert at is not None
            packed = self._weights[index] = weight.view(-1).index_select(0, at)
        return packed

    def _not_finite(self, listed: Tensor) -> str:
        parts = zip(self.names, listed.split(self._sizes), strict=True)
        name = next(name for name, part in parts if not bool(part.isfinite().all()))
        return (
            f"the scores of {name!r} are not finite; the masks would be meaningless. Look for infinite weights there,"
            " or score in double precision (network.double())"
        )

    def _remove(self, gone: Tensor) -> None:
        """Remove the weights at these positions of the list, which ascend."""
        sizes = self._sizes
        ends = torch.tensor(sizes).cumsum(0)
        shares = torch.searchsorted(gone, ends.to(gone.device)).diff(prepend=gone.new_zeros(1)).tolist()
        starts = (ends - torch.tensor(sizes)).tolist()
        for index, (start, part) in enumerate(zip(starts, gone.split(shares), strict=True)):
            listed, placed = self._listed[index], self._placed[index]
            here = there = part - start
            if listed is not None and placed is not None:
                here, there = listed.index_select(0, here).long(), placed.index_select(0, here).long()
            self._strike(index, here, there)
        self._bury(gone)

    def _strike(self, index: int, listed: Tensor, placed: Tensor) -> None:
        """Remove weights of one parameter, by position within its mask and within what is left of it."""
        self._masks[index].index_fill_(0, listed, False)
        self.subject.weights[self.names[index]].view(-1).index_fill_(0, placed, 0)

    def _bury(self, gone: Tensor) -> None:
        self._dead.append(gone)
        if sum(dead.numel() for dead in self._dead) > self._PACK_AT * sum(self._sizes):
            self._pack()

    def _pack(self) -> None:
        for index, (name, mask) in enumerate(zip(self.names, self._masks, strict=True)):
            listed, placed = self._listed[index], self._placed[index]
            if listed is None or placed is None:
                # Half the bytes of the default int64, and no parameter has 2**31 entries.
                listed = placed = where(mask).int()
            else:
                living = where(mask.index_select(0, listed))
                listed, placed = listed.index_select(0, living), placed.index_select(0, living)
            if name in self.subject.blockable and listed.numel() < self._BLOCK_AT * self.subject.weights[name].numel():
                placed = self._cut_to_block(name, listed, placed)
            self._listed[index], self._placed[index] = listed, placed
        self._weights = [None] * len(self._masks)
        self._dead = []

    def _cut_to_block(self, name: str, listed: Tensor, placed: Tensor) -> Tensor:
        """Cut a weight down to the units and inputs that still hold a living weight; returns where those listed now are."""
        weight, mask = self.subject.weights[name], self.subject.masks[name]
        kernel = mask[0, 0].numel()
        unit, within = listed // (mask.shape[1] * kernel), listed % kernel
        read = listed // kernel % mask.shape[1]
        units, unit_at = _present(unit, mask.shape[0])
        inputs, read_at = _present(read, mask.shape[1])
        block = weight.new_zeros(units.numel(), inputs.numel(), *mask.shape[2:])
        moved = (unit_at.index_select(0, unit) * inputs.numel() + read_at.index_select(0, read)) * kernel + within
        block.view(-1).index_copy_(0, moved.long(), weight.view(-1).index_select(0, placed))
        self.subject.weights[name] = block
        self.subject.blocks[name] = Block(units, inputs)
        return moved


class Regrowing(Ranking):
    """The same, for a pruner that regrows: every weight competes in every round, and weights stay as they are."""

    def cut(self, scores: Mapping[str, Tensor | Saliency], keep: int) -> None:
        """Choose anew which ``keep`` weights live."""
        for mask, listed in zip(self._masks, self._listed, strict=True):
            if listed is None:
                mask.fill_(True)
            else:
                mask.index_fill_(0, listed.long(), True)
        self.alive = sum(self._sizes)
        super().cut(scores, keep)

    def _strike(self, index: int, listed: Tensor, placed: Tensor) -> None:
        self._masks[index].index_fill_(0, listed, False)

    def _bury(self, gone: Tensor) -> None:
        """None is gone for good."""


def _present(numbers: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Which of 0 ... size - 1 are among ``numbers``, ascending, and the place of each of them; at least one, so that none is empty."""
    present = torch.zeros(size, dtype=torch.bool, device=numbers.device)
    present[numbers.long()] = True
    if numbers.numel() == 0:
        present[0] = True
    return where(present), (present.cumsum(0) - 1).int()


def factor(score: Tensor | Saliency) -> Tensor:
    """The part of a score that differs from round to round: all of it, or what its weight is multiplied by."""
    return score.gradient if isinstance(score, Saliency) else score
