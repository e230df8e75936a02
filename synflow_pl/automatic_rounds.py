"""Rounds that cannot disconnect a network, as many as that needs (``rounds="auto"``).

Let R be the total flow, a sum of non-negative terms over all paths from input to output of the
positive linear network. The score of a weight is the sum of the terms of the paths through it,
counted as often as they pass it. The terms of all paths through any of some weights therefore add
up to at most the sum of the weights' scores. If that sum is less than R, a path with a positive
term passes none of them, and **it remains if all of them are removed**. For a chain of layers this
is the condition of Theorem 3 of Tanaka et al. 2020, that a round removes less than a layer's total.

Each round removes as many of the lowest scores as keep their sum within ``margin`` * R, at least
one weight, until the target is reached exactly. The argument holds for any graph under these
conditions:

- A path had a positive term before the first round. With max pooling R is the sum over the paths
  that pass the maxima. Other paths may pass them after a round, which can only make R larger.
- Nothing else than the scored flow decides whether a path is left. Weights that no flow passes are
  removed by magnitude, in step with the others, and do not change R. If the network multiplies two
  signals, the one that counts as a constant (the gate) is assumed to stay nonzero.
- Scores and R are computed in floating point. All terms are non-negative, so nothing cancels and
  the relative errors of sums are small. A relative safety of 1024 units of rounding (1.2e-4 in
  float32) is subtracted from ``margin`` if it is closer to 1 than that. Sums of scores are computed
  in float64.

With ``scope="local"`` the layers share the budget: each layer in turn gets an equal part of what is
left for it and the layers after it.

If no weight fits into the budget, the one with the lowest score is removed, which leaves a path if
its score is less than R. If it is not, every weight that is left is tried, since with skip
connections or shared weights it may be dispensable all the same. If none is, no mask within the
present one is smaller and connected, so that a smaller target is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from synflow_pl.pruners.base import Pruner, PruningState, multiplied_out
from synflow_pl.pruning_checks import Batches
from synflow_pl.round_scorer import RoundScorer
from synflow_pl.schedules import kept_per_group
from synflow_pl.selection import PruningGroup, make_groups

__all__ = ["run_automatic_rounds"]

# Relative safety against rounding, in units of the precision of the scores.
_SAFETY = 1024


@dataclass
class _Goal:
    """Group of weights, with its numbers of weights before the first and after the last round."""

    group: PruningGroup
    size: int
    keep: int

    @property
    def excess(self) -> int:
        """Number of weights that are still to be removed."""
        return self.group.num_kept - self.keep


def run_automatic_rounds(
    state: PruningState,
    pruner: Pruner,
    layers: Sequence[tuple[list[str], Fraction]],
    *,
    margin: float,
    target: str,
    batches: Batches | Callable[[int], Batches],
    on_round: Callable[[int, float, Mapping[str, Tensor]], None] | None,
) -> None:
    """Score the weights and remove less than R of them, in rounds; update ``state.masks``.

    Args:
        state: State of the pruning, prepared by the pruner.
        pruner: Pruner whose scores are sums over paths.
        layers: Names of parameters that are ranked together, and the density to which they are
            pruned, relative to the weights that are kept at present.
        margin: Fraction of R that a round may remove, in (0, 1).
        target: Option that sets the target, with its value, for messages.
        batches: As in :func:`synflow_pl.prune`.
        on_round: As in :func:`synflow_pl.prune`.

    Raises:
        ValueError: If every path needs all weights that are left, and fewer are to be kept.
    """
    assert state.scored_network is not None
    safety = _SAFETY * torch.finfo(state.scored_network.dtype).eps
    goals: list[_Goal] = []
    for names, density in layers:
        groups = make_groups(state, names, PruningGroup)
        sizes = [group.num_kept for group in groups]
        goals += map(_Goal, groups, sizes, kept_per_group(sizes, density))
    flowing = [goal for goal in goals if not goal.group.ranked_separately]
    total = sum(mask.numel() for mask in state.masks.values())
    scorer = RoundScorer(state, pruner, batches, sum(goal.keep for goal in goals))
    index = 0
    while index == 0 or any(goal.excess for goal in goals):
        raw_scores = scorer.score(index)
        if index == 0:
            # No flow passes a layer without scores that is ranked alone. Ranked together with
            # others, its weights are kept.
            flowing = [goal for goal in flowing if scorer.has_scores(goal.group.names)]
        scores = multiplied_out(raw_scores)
        assert state.total_flow is not None
        flow = float(state.total_flow)
        unfinished = [goal for goal in flowing if goal.excess]
        if unfinished and not _remove_within(unfinished, scores, min(margin, 1 - safety) * flow):
            _remove_one(state, unfinished, scores, (1 - safety) * flow, scorer.unscored, target)
        _follow([goal for goal in goals if goal not in flowing], flowing, scores)
        del raw_scores, scores  # frees memory for the callback
        index += 1
        if on_round is not None:
            on_round(index, sum(goal.group.num_kept for goal in goals) / total, state.masks)


def _remove_within(goals: list[_Goal], scores: Mapping[str, Tensor], budget: float) -> bool:
    """Remove the lowest scores of each group, all together within a budget.

    Args:
        goals: Groups from which weights are still to be removed.
        scores: Scores by parameter name, multiplied out.
        budget: Largest sum of the removed scores.

    Returns:
        True if at least one weight fits into the budget. If not, nothing is removed.
    """
    lowest = []
    for index, goal in enumerate(goals):
        share = max(0.0, budget) / (len(goals) - index)
        lowest.append(goal.group.lowest_within_budget(scores, share, goal.excess))
        budget -= lowest[-1].total
    for goal, found in zip(goals, lowest, strict=True):
        if found.num_scores:
            goal.group.remove_lowest(scores, found)
    return any(found.num_scores for found in lowest)


def _remove_one(
    state: PruningState,
    goals: list[_Goal],
    scores: Mapping[str, Tensor],
    limit: float,
    unscored: Sequence[str],
    target: str,
) -> None:
    """Remove the weight with the lowest score of those without which a path remains.

    Args:
        state: State of the pruning.
        goals: Groups from which weights are still to be removed.
        scores: Scores by parameter name, multiplied out.
        limit: Score below which a path certainly remains without the weight.
        unscored: Names of parameters that are kept since they have no scores.
        target: Option that sets the target, with its value, for messages.

    Raises:
        ValueError: If there is no such weight.
    """
    lowest = [goal.group.lowest_within_budget(scores, math.inf, 1).total for goal in goals]
    first = min(range(len(goals)), key=lambda index: (lowest[index], -index))
    if lowest[first] < limit:
        goals[first].group.prune_to(scores, goals[first].group.num_kept - 1)
        return
    # All scores of these groups are R or more, so they have no more weights than an average path
    # passes: the sum of all scores is that of the terms, each times the number of its weights.
    ranked = [
        (weight, goal) for goal in reversed(goals) for weight in goal.group.list_weights(scores)
    ]
    for (_, name, position), goal in sorted(ranked, key=lambda pair: pair[0][0]):
        if name not in unscored and _has_flow_without(state, name, position):
            goal.group.remove_weight(name, position)
            return
    keep = sum(goal.keep for goal in goals)
    left = sum(goal.group.num_kept for goal in goals)
    where = (
        f" of {', '.join(name for goal in goals for name in goal.group.names)}"
        if state.scope == "local"
        else ""
    )
    raise ValueError(
        f"{target} keeps {keep} {'weight' if keep == 1 else 'weights'}{where}, but {left}"
        f" {'weight is' if left == 1 else 'weights are'} left there, each of which every path from"
        " input to output needs; choose a larger one"
    )


def _has_flow_without(state: PruningState, name: str, position: int) -> bool:
    """Return whether flow reaches the output if one more weight is removed.

    Args:
        state: State of the pruning, which is left unchanged.
        name: Name of the parameter.
        position: Position in the flattened ``state.weights[name]``.
    """
    assert state.scored_network is not None
    entry = state.weights[name].view(-1)[position]
    value = entry.clone()
    weights = {
        name: weight
        for name, weight in state.weights.items()
        if name in state.scored_network.weights
    }
    entry.zero_()
    with torch.no_grad():
        flow = float(state.scored_network.flow(weights, state.blocks))
    entry.copy_(value)
    return flow > 0


def _follow(following: list[_Goal], flowing: list[_Goal], scores: Mapping[str, Tensor]) -> None:
    """Prune groups that carry no flow to the progress of those that do.

    Args:
        following: Groups without flow.
        flowing: Groups with flow, pruned in this round already.
        scores: Scores by parameter name, multiplied out.
    """
    to_remove = sum(goal.size - goal.keep for goal in flowing)
    removed = to_remove - sum(goal.excess for goal in flowing)
    progress = Fraction(removed, to_remove) if to_remove else Fraction(1)
    for goal in following:
        keep = goal.size - math.floor((goal.size - goal.keep) * progress)
        if keep < goal.group.num_kept:
            goal.group.prune_to(scores, keep)
