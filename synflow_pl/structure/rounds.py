"""Rounds that remove groups of weights until a budget is met.

A round removes the groups with the lowest scores. With ``rounds="auto"`` the sum of their scores
stays below the total flow, which leaves a path as in :mod:`synflow_pl.automatic_rounds`: the terms
of all paths through any of some weights add up to at most the sum of the weights' scores, whichever
weights these are. A weight in two units that are removed together counts twice, which only makes
the rounds smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from synflow_pl.fixed_rounds import flow_note
from synflow_pl.pruners.base import Pruner, PruningState, multiplied_out
from synflow_pl.pruning_checks import Batches
from synflow_pl.pruning_options import PruningOptions
from synflow_pl.round_scorer import RoundScorer
from synflow_pl.schedules import SCHEDULES

if TYPE_CHECKING:
    from synflow_pl.structure.groups import Groups

__all__ = ["BudgetTooSmall", "run_structured_rounds"]

# Relative safety against rounding, in units of the precision of the scores.
_SAFETY = 1024


class BudgetTooSmall(ValueError):
    """A budget is smaller than the cost of what cannot be removed."""


def run_structured_rounds(
    state: PruningState,
    pruner: Pruner,
    options: PruningOptions,
    groups: Groups,
    budget: float,
    target: str,
    batches: Batches | Callable[[int], Batches],
    on_round: Callable[[int, float, Mapping[str, Tensor]], None] | None,
) -> None:
    """Score the weights and remove the lowest-scoring groups, in rounds; update ``state.masks``.

    Args:
        state: State of the pruning, prepared by the pruner.
        pruner: Pruner that computes the scores.
        options: Options of the pruning.
        groups: Groups of weights.
        budget: Largest cost after the last round, as :meth:`Groups.cost` counts it.
        target: Option that sets the budget, with its value, for messages.
        batches: As in :func:`synflow_pl.prune`.
        on_round: As in :func:`synflow_pl.prune`.

    Raises:
        BudgetTooSmall: If the budget is smaller than the cost of what cannot be removed, or with
            ``rounds="auto"`` than that of what every path needs.
        FloatingPointError: If a score is not finite, naming the parameter.
    """
    total = sum(mask.numel() for mask in state.masks.values())
    active = groups.initially_active
    dense = groups.cost(active)
    keep = round(total * min(1.0, budget / dense))
    scorer = RoundScorer(state, pruner, batches, keep, groups.unscored)
    automatic = options.rounds == "auto"
    rounds = pruner.rounds if options.rounds in (None, "auto") else int(options.rounds)
    schedule = SCHEDULES[options.schedule or pruner.schedule]
    final = Fraction(budget / dense) if budget < dense else Fraction(1)
    state.density = final
    removed_shares: list[Tensor] = []
    index = 0
    while automatic or index < rounds:
        of_weights = multiplied_out(scorer.score(index))
        if index == 0 and scorer.unscored and groups.pattern:
            raise ValueError(
                f"every score of {', '.join(scorer.unscored)} is zero, so which of its weights a"
                " pattern keeps would be arbitrary; exclude it, or choose another pruner"
            )
        scores = _group_scores(groups, of_weights, scorer.unscored)
        start = groups.initially_active if pruner.regrows else active
        order = groups.order(scores, start, options.group_score)
        last = automatic or index == rounds - 1
        wanted = budget if last else dense * float(schedule(final, Fraction(index + 1, rounds)))
        number = groups.number_within(order, start, wanted)
        if automatic:
            number = _within_flow(state, groups, scores, order, start, number, options, target)
        active = start.clone()
        active[order[:number]] = False
        removed = _apply(state, groups.masks(active), of_weights, zero=not pruner.regrows)
        if state.total_flow is not None and not automatic:
            removed_shares.append(removed / state.total_flow)
        del of_weights  # frees memory for the callback
        index += 1
        if on_round is not None:
            kept = sum(int(mask.count_nonzero()) for mask in state.masks.values())
            on_round(index, kept / total, state.masks)
        if last and groups.cost(active) > budget and number == len(order):
            raise BudgetTooSmall(
                f"{target}: {groups.cost(active):,.0f} of {dense:,.0f} is left when every group"
                " that can be removed is; choose a larger budget, or another granularity"
            )
        if automatic and groups.cost(active) <= budget:
            break
    pruner.notes = (*pruner.notes, *groups.notes, *flow_note(removed_shares))


def _group_scores(groups: Groups, scores: Mapping[str, Tensor], unscored: list[str]) -> Tensor:
    """Return the scores of groups, (groups,) float64.

    Parameters without scores count as zero in a group that has other weights as well; any other
    group of theirs is kept.

    Raises:
        FloatingPointError: If a score is not finite, naming the parameter.
    """
    for name, score in scores.items():
        if not bool(score.isfinite().all()):
            raise FloatingPointError(
                f"the scores of {name!r} are not finite; the masks would be meaningless. Look for"
                " weights or batches that are not finite"
            )
    if not unscored:
        return groups.sums(scores)
    known = {
        name: torch.zeros_like(score) if name in unscored else score
        for name, score in scores.items()
    }
    without = {
        name: torch.full_like(score, float(name in unscored)) for name, score in scores.items()
    }
    return groups.sums(known).masked_fill(groups.sums(without) >= groups.sizes, torch.inf)


def _within_flow(
    state: PruningState,
    groups: Groups,
    scores: Tensor,
    order: Tensor,
    active: Tensor,
    number: int,
    options: PruningOptions,
    target: str,
) -> int:
    """Return how many groups of an order a round may remove so that a path certainly remains.

    Args:
        state: State of the pruning.
        groups: Groups of weights.
        scores: Scores of the groups.
        order: Numbers of groups in the order in which they are removed; if the first cannot be
            removed, one that can is moved to the front.
        active: Bool tensor (groups,), True for groups that are kept.
        number: Largest number, for the budget.
        options: Options of the pruning.
        target: Option that sets the budget, with its value, for messages.

    Raises:
        BudgetTooSmall: If every path needs every group that is left.
    """
    assert state.total_flow is not None
    assert state.scored_network is not None
    flow = float(state.total_flow)
    safety = _SAFETY * torch.finfo(state.scored_network.dtype).eps
    removed = torch.where(groups.flowing[order], scores[order], 0).cumsum(0)
    within = int((removed <= min(options.margin, 1 - safety) * flow).sum())
    if within or not number:
        return min(number, within)
    if float(removed[0]) < (1 - safety) * flow:
        return 1
    for place in range(len(order)):
        without = active.clone()
        without[order[place]] = False
        if _has_flow(state, groups.masks(without)):
            order[[0, place]] = order[[place, 0]]
            return 1
    raise BudgetTooSmall(
        f"{target}: {groups.cost(active):,.0f} is left, and every path from input to output needs"
        " each group of it; choose a larger budget"
    )


def _has_flow(state: PruningState, masks: Mapping[str, Tensor]) -> bool:
    """Return whether flow reaches the output with some masks."""
    assert state.scored_network is not None
    weights = {
        name: weight * masks[name] if name in masks else weight
        for name, weight in state.weights.items()
        if name in state.scored_network.weights
    }
    with torch.no_grad():
        return float(state.scored_network.flow(weights, state.blocks)) > 0


def _apply(
    state: PruningState,
    masks: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    *,
    zero: bool,
) -> Tensor:
    """Apply the masks of a round to the state.

    Args:
        state: State of the pruning.
        masks: Masks by name.
        scores: Scores of the weights, by name.
        zero: Whether to set the working copies of removed weights to zero.

    Returns:
        The sum of the scores that were removed and that are shares of the flow, a float64 scalar.
    """
    total = torch.zeros((), dtype=torch.float64)
    for name, mask in masks.items():
        removed = state.masks[name] & ~mask
        if name in state.ranked_separately:
            removed &= ~state.ranked_separately[name]
        total = total.to(mask.device) + torch.where(removed, scores[name], 0).sum(
            dtype=torch.float64
        )
        state.masks[name].copy_(mask)
        if zero:
            state.weights[name].masked_fill_(~mask, 0)
    return total
