"""Checks of the batches, the earlier masks, the scores and the result of a pruning.

:func:`synflow_pl.prune` calls them; each error is one sentence that says what to do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from synflow_pl.flow import (
    Connectivity,
    DeadNetwork,
    LinearNetwork,
    disconnection_message,
)
from synflow_pl.masks import Masks
from synflow_pl.pruners.base import Pruner, PruningState, Saliency, varying_factor
from synflow_pl.pruners.batch_loss import BatchLoss

__all__ = [
    "Batches",
    "apply_earlier_masks",
    "batches_of_round",
    "check_collapse",
    "check_collapse_inputs",
    "check_nothing_regrown",
    "rounds_advice",
    "unscored_parameters",
    "zero_removed",
]

Batches = Sequence[Any]
"""Batches that a loss takes: pairs (images (N, C, H, W), labels (N,)), or of any structure."""


def batches_of_round(
    loss: BatchLoss, pruner: Pruner, batches: Batches | Callable[[int], Batches], index: int
) -> Batches:
    """Return the batches of a round, checked if the pruner scores on them.

    Args:
        loss: Loss that will be computed from the batches.
        pruner: Pruner that computes the scores.
        batches: Batches, or a function from the index of a round to its batches.
        index: Index of the round, counted from 0.

    Raises:
        ValueError: If the loss cannot be computed from them.
    """
    if not pruner.needs_batches:
        return () if callable(batches) else batches
    drawn = batches(index) if callable(batches) else batches
    loss.check(pruner.name, drawn)
    return drawn


def apply_earlier_masks(state: PruningState, masks: Masks) -> None:
    """Remove the weights that an earlier pruning removed.

    Args:
        state: State of the pruning; its masks and weights are changed.
        masks: Masks of the earlier pruning.

    Raises:
        ValueError: If the masks do not fit the network, or name other parameters than ``state``.
    """
    masks.parameters(state.network)
    if set(masks.weights) != state.masks.keys():
        differing = sorted(set(masks.weights) ^ state.masks.keys())
        raise ValueError(
            f"masks and exclude disagree about what is pruned: {', '.join(differing)}; prune with"
            " the same exclude"
        )
    for name, mask in state.masks.items():
        mask.copy_(masks[name])
    zero_removed(state)


def zero_removed(state: PruningState) -> None:
    """Set the working copies of removed weights to zero.

    A pruner may have set them to one in a layer whose weights are all zero.
    """
    for name, mask in state.masks.items():
        state.weights[name].masked_fill_(~mask, 0)


def check_nothing_regrown(state: PruningState, pruner: Pruner, earlier: Masks) -> None:
    """Raise an error if a weight is kept that an earlier pruning removed.

    Args:
        state: State of the pruning after the last round.
        pruner: Pruner that computed the scores.
        earlier: Masks of the earlier pruning.

    Raises:
        ValueError: If there is such a weight.
    """
    if any(
        bool((mask & ~earlier[name].to(mask.device)).any()) for name, mask in state.masks.items()
    ):
        raise ValueError(
            f"{pruner.name} brings back weights that masks= removed, so it cannot go on from them;"
            " leave masks out"
        )


def unscored_parameters(
    state: PruningState,
    pruner: Pruner,
    scores: Mapping[str, Tensor | Saliency],
    num_kept: int,
    consequence: str | None = None,
) -> list[str]:
    """Return the names of parameters whose scores are all zero in the first round.

    Such parameters stay dense, since nothing is known about their weights; a note names them.

    Args:
        state: State of the pruning.
        pruner: Pruner that computed the scores.
        scores: Scores of the first round, by parameter name.
        num_kept: Number of weights kept after the last round.
        consequence: What becomes of them, for the note, if they need not stay dense.

    Raises:
        ValueError: If all scores are zero, or if with global scope these parameters have more
            weights than are to be kept.
    """
    sizes = {name: int(mask.count_nonzero()) for name, mask in state.masks.items()}
    names = [
        name
        for name, score in scores.items()
        if sizes[name] and not bool(varying_factor(score).any())
    ]
    if not names:
        return []
    if len(names) == sum(size > 0 for size in sizes.values()):
        raise ValueError(
            f"every score of {pruner.name} is zero, so its masks would be arbitrary: the network's"
            " output does not depend on what it scores. Look for a layer or a gain that is zero"
            " throughout, or choose a pruner that needs no signal (SynFlow, Magnitude)"
        )
    size = sum(sizes[name] for name in names)
    if state.scope == "global" and size > num_kept and consequence is None:
        raise ValueError(
            f"{pruner.name} scores all {size} weights of {', '.join(names)} zero and so would keep"
            f" them, but only {num_kept} weights are to be left; exclude them, choose a larger"
            " density, or a pruner that needs no signal (SynFlow, Magnitude)"
        )
    consequence = consequence or ("kept dense" if state.scope == "global" else "pruned by position")
    pruner.notes = (
        *pruner.notes,
        f"{consequence}, since their scores are zero throughout: {', '.join(names)}",
    )
    return names


def check_collapse_inputs(inputs: tuple[Tensor, ...] | None, on_collapse: str) -> None:
    """Raise an error if the search for a path needs example inputs that are missing.

    Args:
        inputs: Example inputs, or ``None`` if there are none.
        on_collapse: Reaction to a disconnected network, as in :func:`synflow_pl.prune`.

    Raises:
        ValueError: If they are missing and a collapse is to be an error.
    """
    if inputs is None and on_collapse == "error":
        raise ValueError(
            "on_collapse='error' has to see whether a path is left: give input_shape=(C, H, W) or"
            " example_input="
        )


def check_collapse(
    state: PruningState,
    masks: Masks,
    pruner: Pruner,
    on_collapse: str,
    inputs: tuple[Tensor, ...] | None,
    rounds: int | Literal["auto"] | None,
) -> None:
    """Warn or raise an error if no path of kept weights leads from input to output.

    Args:
        state: State of the pruning.
        masks: Masks that the pruning has computed.
        pruner: Pruner that computed the scores.
        on_collapse: ``"warn"`` or ``"error"``.
        inputs: Example inputs, or ``None`` if there are none.
        rounds: Option of the pruning.

    Raises:
        DeadNetwork: If there is no path and a collapse is to be an error.
    """
    try:
        collapse = _describe_collapse(state.network, masks, inputs, state.linear_network)
    except (RuntimeError, ValueError) as error:
        if on_collapse == "error":
            raise
        # The check has failed, but the masks are correct.
        pruner.notes = (
            *pruner.notes,
            f"whether a path from input to output is left could not be checked: {error}",
        )
        return
    if collapse is None:
        return
    collapse += rounds_advice(pruner, rounds)
    if on_collapse == "error":
        raise DeadNetwork(f"{collapse}, or on_collapse='warn' to prune it anyway")
    # The frames above this one are _prune(), prune(), its decorator and the caller.
    warnings.warn(
        f"{pruner.name}: {collapse}, or on_collapse='ignore' if this is meant",
        UserWarning,
        stacklevel=5,
    )


def rounds_advice(pruner: Pruner, rounds: int | Literal["auto"] | None) -> str:
    """Return the advice to choose ``rounds="auto"``, or nothing where that is no help.

    Args:
        pruner: Pruner that computed the scores.
        rounds: Option of the pruning.

    Returns:
        An item that continues a list of advice.
    """
    return ", rounds='auto'" if pruner.scores_are_path_sums and rounds != "auto" else ""


def _describe_collapse(
    network: nn.Module,
    masks: Masks,
    inputs: tuple[Tensor, ...] | None,
    linear_network: LinearNetwork | None,
) -> str | None:
    """Describe a network without a path from input to output, or return ``None`` if it has one."""
    empty = [name for name in masks.weights if not bool(masks[name].any())]
    if inputs is None:
        if not empty:
            return None
        return (
            f"layers with no weight left: {', '.join(empty)}; give input_shape= or example_input="
            " to learn whether a path from input to output remains"
        )
    paths = Connectivity(network, inputs, linear_network=linear_network)
    return (
        None
        if paths.is_connected(masks)
        else disconnection_message(masks.density, paths.first_disconnected(masks), empty)
    )
