"""Groups of weights that are ranked against each other, and the removal of the lowest-scoring."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from synflow_pl.block_memory import nonzero_or_first, select_block
from synflow_pl.budget_selection import WithinBudget, smallest_within_budget
from synflow_pl.device_selection import smallest_mask, smallest_within_budget_on_device
from synflow_pl.flow import Block
from synflow_pl.order_statistics import (
    concatenated,
    nonzero_indices,
    smallest_of_many,
    smallest_up_to,
)
from synflow_pl.pruners.base import PruningState, Saliency, flat_product

__all__ = ["PruningGroup", "RegrowingGroup", "make_groups"]


def make_groups(
    state: PruningState, names: list[str], group_class: type[PruningGroup]
) -> list[PruningGroup]:
    """Divide the weights of some parameters into groups that are ranked against each other.

    Args:
        state: State of the pruning.
        names: Names of the parameters.
        group_class: Class of the groups.

    Returns:
        First the group of all weights that are ranked together, if there are any, then one group
        for each parameter with weights that are ranked separately.
    """
    together: dict[str, Tensor] = {}
    separate: list[PruningGroup] = []
    for name in names:
        kept = state.masks[name].view(-1)
        if name in state.ranked_separately:
            separately = state.ranked_separately[name].view(-1)
            separate.append(group_class(state, {name: separately & kept}, ranked_separately=True))
            if separately.all():
                continue
            kept = kept & ~separately
        together[name] = kept
    return ([group_class(state, together)] if together else []) + separate


class PruningGroup:
    """Weights that are ranked against each other; removed weights are never ranked again.

    Where the pruner can score the block of active units and inputs of a weight alone, the weight
    and everything stored about it shrink to that block as units and inputs die, so the cost of a
    round decreases with the number of kept weights.

    Args:
        state: State of the pruning, whose masks and weights :meth:`prune_to` changes.
        candidates: Bool tensors (n,) over the flattened masks, by parameter name, True where a
            weight takes part. They may share memory with the masks.
        ranked_separately: Whether the scores of the group cannot be compared with those of others.

    Attributes:
        names: Names of the parameters.
        ranked_separately: See above.
        removed_score: Sum of the scores that the last :meth:`prune_to` removed, a float64 scalar;
            ``None`` if the scores are not shares of ``state.total_flow``.
    """

    # A weight is searched for dead units once its density is below this; at higher densities hardly
    # any unit is dead.
    _BLOCK_DENSITY = 0.3
    # The search is repeated each time this fraction of the weights kept at the last one is removed.
    _RECHECK_FRACTION = 0.1
    # A mask is faster than a list of positions where more than this fraction is removed.
    _MANY = 0.1

    def __init__(
        self,
        state: PruningState,
        candidates: Mapping[str, Tensor],
        *,
        ranked_separately: bool = False,
    ) -> None:
        self.state = state
        self.ranked_separately = ranked_separately
        self.names = list(candidates)
        # One entry per parameter, in the order and shape of its present block.
        self._candidates = list(candidates.values())
        self._kept = [int(mask.count_nonzero()) for mask in self._candidates]
        self._kept_at_last_search = [mask.numel() for mask in self._candidates]
        self.removed_score: Tensor | None = None

    @property
    def num_kept(self) -> int:
        """Number of weights of the group that are kept."""
        return sum(self._kept)

    def prune_to(self, scores: Mapping[str, Tensor | Saliency], keep: int) -> None:
        """Remove the weights with the lowest scores until ``keep`` are left.

        Args:
            scores: Scores by parameter name, in the shapes of ``state.weights``; overwritten.
            keep: Number of weights to keep, at most :attr:`num_kept`.

        Raises:
            FloatingPointError: If a score is not finite, naming the parameter.
        """
        self.removed_score = None
        if self.num_kept == 0:
            return  # a small group may be empty before the last round
        parts = self._finite_parts(scores)
        count = self.num_kept - keep
        sums_scores = self.state.total_flow is not None and not self.ranked_separately
        sums = [parts[0].new_zeros((), dtype=torch.float64)]
        if _is_synchronous(parts[0].device):
            for index, removed in enumerate(
                smallest_of_many(parts, self._candidates, self.num_kept, count)
            ):
                if removed.numel():
                    if sums_scores:
                        sums.append(parts[index].index_select(0, removed).sum(dtype=torch.float64))
                    self._remove(index, removed)
                if self._is_sparse(index):
                    self._shrink_to_block(index, parts[index])
        else:
            for index, removed in enumerate(smallest_mask(parts, self._candidates, count)):
                if sums_scores:
                    sums.append(torch.where(removed, parts[index], 0).sum(dtype=torch.float64))
                self._remove_by_mask(index, removed)
            # The distribution over parameters matters for shrinking only, which does not happen
            # here, and counting it would wait for the device.
            self._kept = [keep, *[0] * (len(self.names) - 1)]
        if sums_scores:
            self.removed_score = torch.stack(sums).sum()

    def lowest_within_budget(
        self, scores: Mapping[str, Tensor], budget: float, most: int
    ) -> WithinBudget:
        """Return how many of the lowest scores add up to at most ``budget``, and their sum.

        Args:
            scores: Non-negative scores by parameter name, in the shapes of ``state.weights``.
            budget: Largest allowed sum, at least 0.
            most: Largest allowed count, at most :attr:`num_kept`.

        Raises:
            FloatingPointError: If a score is not finite, naming the parameter.
        """
        parts = self._finite_parts(scores)
        if _is_synchronous(parts[0].device):
            return smallest_within_budget(parts, self._candidates, self.num_kept, budget, most)
        return smallest_within_budget_on_device(parts, self._candidates, budget, most)

    def remove_lowest(self, scores: Mapping[str, Tensor], lowest: WithinBudget) -> None:
        """Remove the weights that :meth:`lowest_within_budget` found for the same scores.

        Args:
            scores: Scores by parameter name, in the shapes of ``state.weights``; overwritten.
            lowest: Result of :meth:`lowest_within_budget`.
        """
        if lowest.threshold is None:
            return self.prune_to(scores, self.num_kept - lowest.num_scores)
        parts = [flat_product(scores[name]) for name in self.names]
        for index, removed in enumerate(
            smallest_up_to(parts, self._candidates, lowest.threshold, lowest.excess_ties)
        ):
            count = int(np.count_nonzero(removed.numpy()))
            if count > self._MANY * removed.numel() and self.names[index] not in self.state.blocks:
                self._remove_by_mask(index, removed)
                self._kept[index] -= count
            elif count:
                self._remove(index, nonzero_indices(removed))
            if self._is_sparse(index):
                self._shrink_to_block(index, parts[index])

    def list_weights(self, scores: Mapping[str, Tensor]) -> list[tuple[float, str, int]]:
        """Return the score, the parameter and the position of each weight, the last one first.

        Args:
            scores: Scores by parameter name, in the shapes of ``state.weights``.

        Returns:
            One tuple per weight of the group. Positions refer to the flattened ``state.weights``.
        """
        listed = []
        for name, candidates in zip(self.names, self._candidates, strict=True):
            positions = nonzero_indices(candidates)
            values = scores[name].reshape(-1).index_select(0, positions)
            listed += [
                (value, name, position)
                for value, position in zip(values.tolist(), positions.tolist(), strict=True)
            ]
        return listed[::-1]

    def remove_weight(self, name: str, position: int) -> None:
        """Remove one weight.

        Args:
            name: Name of the parameter.
            position: Position in the flattened ``state.weights[name]``.
        """
        index = self.names.index(name)
        self._remove(index, torch.tensor([position], device=self._candidates[index].device))

    def _finite_parts(self, scores: Mapping[str, Tensor | Saliency]) -> list[Tensor]:
        """Return the scores as flat tensors, one per parameter, after a check that all are finite.

        Raises:
            FloatingPointError: If one is not, naming the parameter.
        """
        parts = [flat_product(scores[name]) for name in self.names]
        extremes = [end for piece in concatenated(parts) for end in torch.aminmax(piece)]
        if not bool(torch.stack(extremes).isfinite().all()):
            raise FloatingPointError(self._not_finite(parts))
        return parts

    def _not_finite(self, parts: list[Tensor]) -> str:
        name = next(
            name
            for name, part in zip(self.names, parts, strict=True)
            if not bool(part.isfinite().all())
        )
        return (
            f"the scores of {name!r} are not finite; the masks would be meaningless. Look for"
            " infinite weights there, or score in double precision (network.double())"
        )

    def _remove(self, index: int, removed: Tensor) -> None:
        """Remove weights of one parameter, given by their positions (k,) in its present block."""
        name, candidates = self.names[index], self._candidates[index]
        mask = self.state.masks[name].view(-1)
        mask.index_fill_(0, self._positions_in_mask(name, removed), False)
        if candidates.data_ptr() != mask.data_ptr():
            candidates.index_fill_(0, removed, False)
        self.state.weights[name].view(-1).index_fill_(0, removed, 0)
        self._kept[index] -= removed.numel()

    def _is_sparse(self, index: int) -> bool:
        """Return whether to search a weight for dead units."""
        kept, size = self._kept[index], self._candidates[index].numel()
        return (
            self.names[index] in self.state.compressible
            and kept < self._BLOCK_DENSITY * size
            and kept <= (1 - self._RECHECK_FRACTION) * self._kept_at_last_search[index]
        )

    def _remove_by_mask(self, index: int, removed: Tensor) -> None:
        """Remove the weights of one parameter where ``removed`` (n,) is True."""
        name = self.names[index]
        kept = ~removed
        self.state.masks[name].view(-1).logical_and_(kept)
        self._candidates[index].logical_and_(kept)
        weight = self.state.weights[name].view(-1)
        if weight.device.type == "cpu":  # NumPy takes a tenth of the time
            np.multiply(weight.numpy(), kept.numpy(), out=weight.numpy())
        else:
            weight.masked_fill_(removed, 0)

    def _positions_in_mask(self, name: str, positions: Tensor) -> Tensor:
        """Convert positions in the present block of a weight to positions in its mask."""
        if name not in self.state.blocks:
            return positions
        units, inputs = self.state.blocks[name]
        mask = self.state.masks[name]
        kernel = mask[0, 0].numel()
        row, within = positions // (inputs.numel() * kernel), positions % kernel
        column = positions // kernel % inputs.numel()
        return (
            units.index_select(0, row) * mask.shape[1] + inputs.index_select(0, column)
        ) * kernel + within

    def _shrink_to_block(self, index: int, spare: Tensor) -> None:
        """Reduce a weight to the units and inputs that still have a kept weight.

        Args:
            index: Position of the parameter in :attr:`names`.
            spare: Tensor of the weight's size and dtype, which is overwritten.
        """
        name = self.names[index]
        self._kept_at_last_search[index] = self._kept[index]
        weight = self.state.weights[name]
        candidates = self._candidates[index].view_as(weight)
        # A maximum over bytes is faster than any() over bools.
        by_unit = candidates.view(torch.uint8).flatten(1)
        units = nonzero_or_first(by_unit.amax(1))
        inputs = nonzero_or_first(by_unit.amax(0).view(weight.shape[1], -1).amax(1))
        size = candidates[0, 0].numel() * units.numel() * inputs.numel()
        previous = self.state.blocks.get(name)
        # The first time the candidates may share memory with the mask, which keeps its shape. They
        # move into the memory of the weight, behind the block.
        bytes_per_entry = weight.element_size() + (previous is None)
        if size == weight.numel() or size * bytes_per_entry > weight.nbytes:
            return
        self.state.blocks[name] = Block(
            units if previous is None else previous.units.index_select(0, units),
            inputs if previous is None else previous.inputs.index_select(0, inputs),
        )
        self.state.weights[name] = select_block(weight, units, inputs, spare, weight)
        room = (
            candidates
            if previous is not None
            else weight.view(-1).view(torch.bool)[size * weight.element_size() :]
        )
        block = select_block(candidates, units, inputs, spare.view(torch.bool), room)
        self._candidates[index] = block.view(-1)


class RegrowingGroup(PruningGroup):
    """Weights that are all ranked in every round, for a pruner that may bring weights back.

    Their working copies keep their values when they are removed.
    """

    def __init__(
        self,
        state: PruningState,
        candidates: Mapping[str, Tensor],
        *,
        ranked_separately: bool = False,
    ) -> None:
        cloned = {name: mask.clone() for name, mask in candidates.items()}
        super().__init__(state, cloned, ranked_separately=ranked_separately)

    def prune_to(self, scores: Mapping[str, Tensor | Saliency], keep: int) -> None:
        """Keep the ``keep`` weights with the largest scores, removed weights included."""
        for name, candidates in zip(self.names, self._candidates, strict=True):
            self.state.masks[name].view(-1).logical_or_(candidates)
        self._kept = [int(candidates.count_nonzero()) for candidates in self._candidates]
        super().prune_to(scores, keep)

    def _remove(self, index: int, removed: Tensor) -> None:
        self.state.masks[self.names[index]].view(-1).index_fill_(0, removed, False)

    def _remove_by_mask(self, index: int, removed: Tensor) -> None:
        self.state.masks[self.names[index]].view(-1).logical_and_(~removed)


def _is_synchronous(device: torch.device) -> bool:
    """Return whether reading a number from the device costs nothing.

    An accelerator would first have to finish its queue.
    """
    return device.type == "cpu"
