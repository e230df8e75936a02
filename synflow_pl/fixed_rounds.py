"""A given number of rounds, at the densities of a schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from synflow_pl.pruners.base import Pruner, PruningState
from synflow_pl.pruning_checks import Batches
from synflow_pl.pruning_options import PruningOptions
from synflow_pl.round_scorer import RoundScorer
from synflow_pl.schedules import kept_per_round
from synflow_pl.selection import PruningGroup, RegrowingGroup, make_groups

__all__ = ["flow_note", "run_fixed_rounds"]


def run_fixed_rounds(
    state: PruningState,
    pruner: Pruner,
    options: PruningOptions,
    rounds: int,
    layers: list[tuple[list[str], Fraction]],
    target: Fraction,
    batches: Batches | Callable[[int], Batches],
    on_round: Callable[[int, float, Mapping[str, Tensor]], None] | None,
) -> None:
    """Score the weights and remove the lowest-scoring, once per round; update ``state.masks``.

    Args:
        state: State of the pruning, prepared by the pruner.
        pruner: Pruner that computes the scores.
        options: Options of the pruning.
        rounds: Number of rounds.
        layers: Names of parameters that are ranked together, and the density to which they are
            pruned, relative to the weights that are kept at present.
        target: Density of the whole network after the last round.
        batches: As in :func:`synflow_pl.prune`.
        on_round: As in :func:`synflow_pl.prune`.
    """
    total = sum(mask.numel() for mask in state.masks.values())
    schedule = options.schedule or pruner.schedule
    groups: list[PruningGroup] = []
    kept_after: list[list[int]] = []  # by group, then by round
    for names, density in layers:
        parts = make_groups(state, names, RegrowingGroup if pruner.regrows else PruningGroup)
        groups += parts
        kept_after += kept_per_round(schedule, density, rounds, [part.num_kept for part in parts])
    scorer = RoundScorer(state, pruner, batches, sum(kept[-1] for kept in kept_after))
    removed_shares: list[Tensor] = []
    for index in range(rounds):
        num_kept = sum(kept[index] for kept in kept_after)
        state.density = target if index == rounds - 1 else Fraction(num_kept, total)
        scores = scorer.score(index)
        for group, kept in zip(groups, kept_after, strict=True):
            group.prune_to(scores, kept[index])
        del scores  # frees memory for the callback
        if state.total_flow is not None:
            removed = [
                group.removed_score
                for group in groups
                if group.removed_score is not None and scorer.has_scores(group.names)
            ]
            removed_shares.append(sum(removed, start=torch.zeros(())) / state.total_flow)
        if on_round is not None:
            on_round(index + 1, num_kept / total, state.masks)
    pruner.notes = (*pruner.notes, *flow_note(removed_shares))


def flow_note(shares: Sequence[Tensor]) -> tuple[str, ...]:
    """Return a note if a round removed the total flow or more, or no note.

    Args:
        shares: Sum of the scores that each round removed over the total flow R before the round,
            scalars.
    """
    ratios = torch.stack(list(shares)).tolist() if shares else []
    beyond = [ratio for ratio in ratios if ratio >= 1]
    if not beyond:
        return ()
    which = (
        f"round {ratios.index(max(beyond)) + 1} of {len(ratios)} removed {max(beyond):.3g} times"
        " the total flow"
    )
    more = f", and {len(beyond)} rounds removed all of it or more" if len(beyond) > 1 else ""
    return (
        f"{which}{more}: that a path from input to output remains is only guaranteed if each round"
        " removes less than the total flow, as with rounds='auto'",
    )
