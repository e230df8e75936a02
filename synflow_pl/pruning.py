"""Pruning: the loop. Score, cut, and again, until the asked number of weights is left.

A pruner only scores. Which weights compete (scope), how many are left after each round (schedule)
and the cut itself are here, the same for every pruner, so that a comparison compares scores and
nothing else.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from synflow_pl.bias_norm_masks import follow
from synflow_pl.bisection import nearest_attainable
from synflow_pl.flow import (
    Connectivity,
    DeadNetwork,
    LinearNetwork,
    disconnection_message,
    example_of,
)
from synflow_pl.masks import Masks, prunable
from synflow_pl.numerics import full_precision
from synflow_pl.parameters import check_network, left_out, left_out_note
from synflow_pl.pruners.base import Pruner, PruningState, Saliency
from synflow_pl.schedules import SCHEDULES, as_density, keeps, kept_weights
from synflow_pl.selection import PruningGroup, RegrowingGroup, factor, make_groups

__all__ = ["check_options", "prune"]

SCOPES = ("global", "local")
ON_COLLAPSE = ("warn", "error", "ignore")

Batches = Sequence[tuple[Tensor, Tensor]]
"""(images (N, C, H, W), labels (N,)) pairs."""


@full_precision()
def prune(
    network: nn.Module,
    pruner: Pruner,
    *,
    density: float | Fraction | None = None,
    num_kept: int | None = None,
    effective_density: float | Fraction | None = None,
    masks: Masks | None = None,
    rounds: int | None = None,
    schedule: Literal["exponential", "linear", "cubic"] | None = None,
    scope: Literal["global", "local"] = "global",
    input_shape: Sequence[int] | None = None,
    example_input: Tensor | Sequence[Tensor] | None = None,
    batches: Batches | Callable[[int], Batches] = (),
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    mask_bias: bool = False,
    mask_norm: bool = False,
    exclude: Iterable[str] = (),
    train_mode: bool = False,
    on_round: Callable[[int, float, Mapping[str, Tensor]], None] | None = None,
    on_collapse: Literal["warn", "error", "ignore"] = "warn",
) -> Masks:
    """Prune ``network`` in place: choose its masks, then zero what they remove. Runs where the
    network is, on CPU or GPU.

    Until the last round is over the network is not touched, so an error or an interruption leaves
    it dense.

    Args:
        network: any module with linear, convolution or attention layers.
        pruner: gives the scores.
        density: fraction of prunable weights kept, in (0, 1]; exact: ``n - floor((1 - density) *
            n)`` weights live.
        num_kept: instead of ``density``, the number of weights kept, in [1, n]; with
            ``scope="global"`` only.
        effective_density: instead of ``density``, the fraction of prunable weights that are kept
            and lie on a path of living weights from input to output, in (0, 1]; the nearest
            attainable, found by pruning with ever better guesses of ``num_kept``.
        masks: of an earlier pruning, to go on from: what they removed stays removed, and the rounds
            start at their density. ``density`` and ``num_kept`` count all prunable weights all the
            same.
        rounds: score-then-cut steps, at least 1; ``None`` is the pruner's own number (SynFlow 100,
            one-shot methods 1).
        schedule: density after each round; ``None`` is the pruner's own (exponential but for
            gradual pruning).
        scope: ``"global"``, all layers in one ranking, or ``"local"``, each layer alone and each at
            ``density``.
        input_shape: (C, H, W), for pruners that need to know it and networks with one input.
        example_input: instead of it, a tensor, or a tuple or list of the tensors that ``forward()``
            takes by position, with the batch dimension.
        batches: (images (N, C, H, W), labels (N,)) pairs, for data-driven pruners; or a function
            from the index of a round, from 0, to such pairs, for fresh batches in every round. It
            must return the same for the same index.
        loss: (logits, labels) to the mean loss of a batch, for data-driven pruners.
        mask_bias: mask biases too, each living as long as its unit; ``density`` still counts
            weights only.
        mask_norm: the same for the gain and shift of a normalisation that reads a prunable layer.
        exclude: shell-style patterns of parameter names that stay dense (a dense classifier is
            ``["fc.*"]``).
        train_mode: score in train mode, for data-driven pruners.
        on_round: called with (round, density, masks) after each round, rounds counted from 1; the
            masks by name, to look at and not to keep, since the next round changes them.
        on_collapse: what to do if no path of kept weights leads from input to output: ``"warn"`` by
            one sentence, ``"error"`` (the network stays dense then), or ``"ignore"``. The input is
            that of ``input_shape``, ``example_input`` or the first batch; if none is given, only
            layers of which nothing is kept can be warned of.

    Returns:
        The masks, on the network's device. What takes no part, and what else to know, is in
        ``pruner.notes``.

    Raises:
        TypeError: if the network is TorchScript or wrapped for parallel training, or
            ``example_input`` is not made of tensors.
        ValueError: for an impossible option, naming its value, before any work starts; or if the
            network has nothing to prune, or fails on its input.
        FloatingPointError: if a score is not finite, naming the layer.
        DeadNetwork: with ``on_collapse="error"``, if no path is left.
    """
    check_network(network)
    if on_collapse not in ON_COLLAPSE:
        near = get_close_matches(str(on_collapse), ON_COLLAPSE, n=1, cutoff=0)[0]
        raise ValueError(
            f"on_collapse: {on_collapse!r} is not one of {', '.join(ON_COLLAPSE)}; did you mean {near!r}?"
        )
    check_options(
        density=density,
        num_kept=num_kept,
        effective_density=effective_density,
        rounds=rounds,
        schedule=schedule,
        scope=scope,
    )
    if effective_density is not None:
        inputs = example_of(network, input_shape, example_input)
        options = {
            "masks": masks, "rounds": rounds, "schedule": schedule, "example_input": inputs, "batches": batches, "loss": loss,
            "mask_bias": mask_bias, "mask_norm": mask_norm, "exclude": exclude, "train_mode": train_mode,
        }  # fmt: skip
        num_kept = _kept_for(network, pruner, as_density(effective_density), inputs, options)
    subject = PruningState.of(network, exclude)
    subject.scope = scope
    if masks is not None:
        _go_on(subject, masks)
    total = sum(weight.numel() for weight in subject.weights.values())
    if num_kept is not None and num_kept > total:
        raise ValueError(
            f"num_kept: {num_kept} is more than the {total} prunable weights there are"
        )
    target = as_density(density) if density is not None else Fraction(num_kept or 0, total)
    if pruner.needs_input or mask_norm or input_shape is not None or example_input is not None:
        subject.inputs = example_of(network, input_shape, example_input)
    subject.batches, subject.loss, subject.train_mode = (
        _batches_of(pruner, batches, 0),
        loss,
        train_mode,
    )
    shown = subject.inputs
    if shown is None and pruner.needs_batches and on_collapse != "ignore":
        shown = example_of(
            network, None, next(images for images, _ in subject.batches if len(images))[:1]
        )
    if shown is None and on_collapse == "error":
        raise ValueError(
            "on_collapse='error' has to see whether a path is left: give input_shape=(C, H, W) or example_input="
        )

    competing = (
        [list(subject.weights)] if scope == "global" else [[name] for name in subject.weights]
    )
    sizes = [sum(subject.weights[name].numel() for name in names) for names in competing]
    alive = [sum(int(subject.masks[name].count_nonzero()) for name in names) for names in competing]
    if scope == "global" and kept_weights(total, target) > alive[0]:
        raise ValueError(
            f"{kept_weights(total, target)} of {total} weights are to be kept, but masks= leaves {alive[0]}; ask for fewer"
        )
    # Of what lives in each competition. Where all does, that is the density itself: one rounded to
    # whole weights would give a schedule that differs by a weight here and there, and in iterated
    # masks that grows.
    shares = [
        target if m == n else _share(kept_weights(n, target), m)
        for n, m in zip(sizes, alive, strict=True)
    ]
    rounds = pruner.rounds if rounds is None else rounds
    schedule = pruner.schedule if schedule is None else schedule
    if any(share < 1 for share in shares):
        pruner.prepare(subject)
        if masks is not None:
            _silence(subject)
        rankings, after = [], []
        ranking_of = RegrowingGroup if pruner.regrows else PruningGroup
        for names, share in zip(competing, shares, strict=True):
            parts = make_groups(subject, names, ranking_of)
            rankings += parts
            after += keeps(schedule, share, rounds, [ranking.alive for ranking in parts])
        for index in range(rounds):
            left = sum(kept_then[index] for kept_then in after)
            subject.density = target if index == rounds - 1 else Fraction(left, total)
            if index and callable(batches):
                subject.batches = _batches_of(pruner, batches, index)
            scores = dict(pruner.score(subject))
            if index == 0:
                dense = _unscored(pruner, subject, scores, after if scope == "global" else None)
            scores |= {
                name: torch.full_like(subject.weights[name], torch.finfo(torch.float32).max)
                for name in dense
            }
            for ranking, kept_then in zip(rankings, after, strict=True):
                ranking.cut(scores, kept_then[index])
            del scores
            if on_round is not None:
                on_round(index + 1, left / total, subject.masks)
    else:
        pruner.notes = ()  # nothing was scored
    # Followers are biases and gains, which this note only counts.
    if note := left_out_note(network, left_out(network, subject.masks), all_of_them=False):
        pruner.notes = (*pruner.notes, note)
    pruner.finish(subject)
    subject.weights.clear()  # their memory serves what is still to be done
    if masks is not None and any(
        bool((mask & ~masks[name].to(mask.device)).any()) for name, mask in subject.masks.items()
    ):
        raise ValueError(
            f"{pruner.name} brings back weights that masks= removed, so it cannot go on from them; leave masks out"
        )
    followers = follow(
        network, subject.masks, subject.inputs, mask_bias=mask_bias, mask_norm=mask_norm
    )
    found = Masks({**subject.masks, **followers}, followers)
    if on_collapse != "ignore":
        try:
            collapse = _collapse(network, found, shown, subject.skeleton)
        except (RuntimeError, ValueError) as error:
            if on_collapse == "error":
                raise
            # The masks are right all the same.
            collapse = None
            pruner.notes = (
                *pruner.notes,
                f"whether a path from input to output is left could not be checked: {error}",
            )
        if collapse is not None and on_collapse == "error":
            raise DeadNetwork(f"{collapse}, or on_collapse='warn' to prune it anyway")
        if collapse is not None:
            # Above this frame lies that of the decorator.
            warnings.warn(
                f"{pruner.name}: {collapse}, or on_collapse='ignore' if this is meant",
                UserWarning,
                stacklevel=3,
            )
    found.apply(network)
    return found


def check_options(
    *,
    density: float | Fraction | None,
    num_kept: int | None,
    effective_density: float | Fraction | None,
    rounds: int | None,
    schedule: str | None,
    scope: str,
) -> None:
    """Refuse an impossible option in one sentence that names it, before any work starts.

    Raises:
        ValueError: naming the value and what was expected.
    """
    if sum(given is not None for given in (density, num_kept, effective_density)) != 1:
        raise ValueError(
            "give either density, in (0, 1], or num_kept, a number of weights, or effective_density, in (0, 1];"
            f" got density={density}, num_kept={num_kept}, effective_density={effective_density}"
        )
    for given in (density, effective_density):
        if given is not None:
            as_density(given)
    if num_kept is not None and (
        isinstance(num_kept, bool) or not isinstance(num_kept, int) or num_kept < 1
    ):
        raise ValueError(f"num_kept: {num_kept!r} must be a whole number of weights, at least 1")
    if density is None and scope == "local":
        counted = "kept counts" if num_kept is not None else "effective_density is about"
        raise ValueError(
            f"{counted} the weights of the whole network; with scope='local' give density instead"
        )
    if rounds is not None and (
        isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1
    ):
        raise ValueError(
            f"rounds: {rounds!r} must be a whole number, at least 1; leave it out for the pruner's own number"
        )
    for option, value, choices in (
        ("schedule", schedule, tuple(SCHEDULES)),
        ("scope", scope, SCOPES),
    ):
        if value not in choices and value is not None:
            near = get_close_matches(str(value), choices, n=1, cutoff=0)[0]
            raise ValueError(
                f"{option}: {value!r} is not one of {', '.join(choices)}; did you mean {near!r}?"
            )


def _batches_of(pruner: Pruner, batches: Batches | Callable[[int], Batches], index: int) -> Batches:
    """Return the batches of the round with this index, checked if the pruner scores on them.

    Raises:
        ValueError: if they are not (images, labels) pairs.
    """
    if not pruner.needs_batches:
        return () if callable(batches) else batches
    drawn = batches(index) if callable(batches) else batches
    _check_batches(pruner, drawn)
    return drawn


def _collapse(
    network: nn.Module,
    masks: Masks,
    inputs: tuple[Tensor, ...] | None,
    skeleton: LinearNetwork | None,
) -> str | None:
    """Describe a network without a path from input to output in one sentence; return ``None`` if
    there is a path.
    """
    emptied = [name for name in masks.weights if not bool(masks[name].any())]
    if inputs is None:
        if not emptied:
            return None
        return (
            f"layers with no weight left: {', '.join(emptied)}; give input_shape= or example_input= to learn whether a path from input"
            " to output remains"
        )
    paths = Connectivity(network, inputs, linear_network=skeleton)
    return (
        None
        if paths.is_connected(masks)
        else disconnection_message(masks.density, paths.first_disconnected(masks), emptied)
    )


def _check_batches(pruner: Pruner, batches: Batches) -> None:
    wanted = f"{pruner.name} scores on data: give batches=, a list of (images, labels) pairs"
    if not isinstance(batches, Sequence) or len(batches) == 0:
        raise ValueError(
            f"{wanted}; got {'none' if isinstance(batches, Sequence) else f'a {type(batches).__name__}'}"
        )
    for index, batch in enumerate(batches):
        if not (
            isinstance(batch, (tuple, list))
            and len(batch) == 2
            and all(isinstance(part, Tensor) and part.dim() for part in batch)
        ):
            raise ValueError(f"{wanted}; batches[{index}] is no pair of tensors")
        if len(batch[0]) != len(batch[1]):
            raise ValueError(
                f"{wanted}; batches[{index}] has {len(batch[0])} images and {len(batch[1])} labels"
            )
    if not any(len(images) for images, _ in batches):
        raise ValueError(f"{wanted}; there are no images in these")


def _kept_for(
    network: nn.Module,
    pruner: Pruner,
    density: Fraction,
    inputs: tuple[Tensor, ...],
    options: dict[str, Any],
) -> int:
    """How many weights to keep, so that as near as can be the effective density is this one. The
    network stays as it is.
    """
    masks = options["masks"]
    total = sum(parameter.numel() for parameter in prunable(network, options["exclude"]).values())
    highest, wanted = total if masks is None else masks.kept, kept_weights(total, density)
    if wanted > highest:
        raise ValueError(
            f"{wanted} of {total} weights are to be effective, but masks= leaves {highest}; ask for fewer"
        )
    paths = Connectivity(network, inputs)

    def effective(kept: int) -> int:
        found = prune(
            copy.deepcopy(network), pruner, num_kept=kept, on_collapse="ignore", **options
        )
        return sum(int(on.count_nonzero()) for on in paths.effective(found).values())

    return nearest_attainable(effective, wanted, highest)


def _go_on(subject: PruningState, masks: Masks) -> None:
    """Let the subject start where an earlier pruning ended."""
    masks.parameters(subject.network)
    if set(masks.weights) != subject.masks.keys():
        differing = sorted(set(masks.weights) ^ subject.masks.keys())
        raise ValueError(
            f"masks and exclude disagree about what is pruned: {', '.join(differing)}; prune with the same exclude"
        )
    for name, mask in subject.masks.items():
        mask.copy_(masks[name])
    _silence(subject)


def _share(kept: int, alive: int) -> Fraction:
    """``num_kept`` of ``alive`` weights; a layer in which less lives than it is to keep keeps all
    of it.
    """
    return min(Fraction(1), Fraction(kept, alive)) if alive else Fraction(1)


def _silence(subject: PruningState) -> None:
    """Zero the working copies where nothing lives; a pruner may have made ones of a layer that is
    gone throughout.
    """
    for name, mask in subject.masks.items():
        subject.weights[name].masked_fill_(~mask, 0)


def _unscored(
    pruner: Pruner,
    subject: PruningState,
    scores: Mapping[str, Tensor | Saliency],
    after: list[list[int]] | None,
) -> list[str]:
    """Names of the parameters that the pruner's first scores say nothing about: zero throughout.
    They stay dense.

    Raises:
        ValueError: if that leaves nothing to choose by.
    """
    living = {name: int(mask.count_nonzero()) for name, mask in subject.masks.items()}
    names = [
        name for name, score in scores.items() if living[name] and not bool(factor(score).any())
    ]
    if not names:
        return []
    who = pruner.name
    if len(names) == sum(count > 0 for count in living.values()):
        raise ValueError(
            f"every score of {who} is zero, so its masks would be arbitrary: the network's output does not depend on what it scores."
            " Look for a layer or a gain that is zero throughout, or choose a pruner that needs no signal (SynFlow, Magnitude)"
        )
    size = sum(living[name] for name in names)
    if after is not None and size > (left := sum(kept[-1] for kept in after)):
        raise ValueError(
            f"{who} scores all {size} weights of {', '.join(names)} zero and so would keep them, but only {left} weights are to"
            " be left; exclude them, choose a larger density, or a pruner that needs no signal (SynFlow, Magnitude)"
        )
    kept = "kept dense" if after is not None else "cut by position"
    pruner.notes = (
        *pruner.notes,
        f"{kept}, since their scores are zero throughout: {', '.join(names)}",
    )
    return names
