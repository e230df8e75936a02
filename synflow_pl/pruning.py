"""The loop over the rounds of a pruning, and its options.

A pruner only computes scores. Which weights are ranked together (scope), how many are kept after
each round (schedule) and the selection itself are the same for every pruner, so that a comparison
of pruners compares their scores and nothing else.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fractions import Fraction
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from synflow_pl.bias_norm_masks import compute_bias_norm_masks
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
from synflow_pl.schedules import SCHEDULES, as_density, kept_per_round, kept_weights
from synflow_pl.selection import PruningGroup, RegrowingGroup, make_groups, varying_factor

__all__ = ["PruningOptions", "nearest_attainable", "prune"]

Batches = Sequence[tuple[Tensor, Tensor]]
"""Pairs (images (N, C, H, W), labels (N,))."""

_CHOICES = {
    "on_collapse": ("warn", "error", "ignore"),
    "schedule": tuple(SCHEDULES),
    "scope": ("global", "local"),
}


@dataclass(frozen=True, kw_only=True)
class PruningOptions:
    """Options of a pruning, checked when they are constructed.

    :func:`prune` and :class:`synflow_pl.PruneAtInit` construct them from their keyword arguments;
    the fields are described there.

    Raises:
        ValueError: If an option is impossible, naming its value and what was expected.

    Example:
        >>> PruningOptions(density=0.1).scope
        'global'
    """

    density: float | Fraction | None = None
    num_kept: int | None = None
    effective_density: float | Fraction | None = None
    rounds: int | None = None
    schedule: Literal["exponential", "linear", "cubic"] | None = None
    scope: Literal["global", "local"] = "global"
    mask_bias: bool = False
    mask_norm: bool = False
    exclude: Iterable[str] = ()
    train_mode: bool = False
    on_collapse: Literal["warn", "error", "ignore"] = "warn"

    def __post_init__(self) -> None:
        self._check_choice("on_collapse")
        targets = (self.density, self.num_kept, self.effective_density)
        if sum(target is not None for target in targets) != 1:
            raise ValueError(
                "give either density, in (0, 1], or num_kept, a number of weights, or"
                f" effective_density, in (0, 1]; got density={self.density},"
                f" num_kept={self.num_kept}, effective_density={self.effective_density}"
            )
        for density in (self.density, self.effective_density):
            if density is not None:
                as_density(density)
        if self.num_kept is not None and not _is_positive_integer(self.num_kept):
            raise ValueError(
                f"num_kept: {self.num_kept!r} must be a whole number of weights, at least 1"
            )
        if self.density is None and self.scope == "local":
            counted = (
                "num_kept counts" if self.num_kept is not None else "effective_density is about"
            )
            raise ValueError(
                f"{counted} the weights of the whole network; with scope='local' give density"
                " instead"
            )
        if self.rounds is not None and not _is_positive_integer(self.rounds):
            raise ValueError(
                f"rounds: {self.rounds!r} must be a whole number, at least 1; leave it out for the"
                " pruner's own number"
            )
        if self.schedule is not None:
            self._check_choice("schedule")
        self._check_choice("scope")

    def _check_choice(self, option: str) -> None:
        value, choices = getattr(self, option), _CHOICES[option]
        if value not in choices:
            near = get_close_matches(str(value), choices, n=1, cutoff=0)[0]
            raise ValueError(
                f"{option}: {value!r} is not one of {', '.join(choices)}; did you mean {near!r}?"
            )


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


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
    """Prune a network in place: compute its masks, then set the removed weights to zero.

    The network is pruned on its own device. It is not changed before the last round is finished,
    so an error or an interruption leaves it dense.

    Args:
        network: Any module with linear, convolution or attention layers.
        pruner: Pruner that computes the scores.
        density: Fraction of prunable weights kept, in (0, 1]. It is exact: of n weights,
            ``n - floor((1 - density) * n)`` are kept.
        num_kept: Number of weights kept, in [1, n], instead of ``density``; with
            ``scope="global"`` only.
        effective_density: Fraction of prunable weights that are kept and lie on a path of kept
            weights from input to output, in (0, 1], instead of ``density``. The nearest attainable
            value is found by pruning copies of the network with different ``num_kept``.
        masks: Masks of an earlier pruning to continue from. Weights that they remove stay removed,
            and the rounds start at their density. ``density`` and ``num_kept`` still count all
            prunable weights.
        rounds: Number of rounds, at least 1; ``None`` uses the pruner's own number (100 for
            SynFlow, 1 for one-shot pruners).
        schedule: Density after each round: ``"exponential"``, ``"linear"`` or ``"cubic"``; ``None``
            uses the pruner's own (exponential except for gradual pruning).
        scope: ``"global"`` to rank the weights of all layers together, ``"local"`` to rank each
            layer alone and prune it to ``density``.
        input_shape: Shape (C, H, W) of one input, for pruners that need it and networks with one
            input.
        example_input: Tensor, or tuple or list of the positional arguments of ``forward()``, with
            the batch dimension, instead of ``input_shape``.
        batches: Pairs (images (N, C, H, W), labels (N,)), for pruners that score on data; or a
            function from the index of a round, counted from 0, to such pairs, for fresh batches in
            every round. The function must return the same batches for the same index.
        loss: Function from (logits, labels) to the mean loss of a batch, for pruners that score on
            data.
        mask_bias: Whether to mask biases too, each exactly when its unit has no kept weight;
            ``density`` still counts weights only.
        mask_norm: Whether to mask gains and shifts too, of normalisations that read the output of
            one prunable layer and nothing else.
        exclude: Shell-style patterns of parameter names that stay dense (``["fc.*"]`` for a dense
            classifier).
        train_mode: Whether pruners that score on data do so in train mode.
        on_round: Function that is called with (round, density, masks) after each round, rounds
            counted from 1. The masks by name are only valid during the call, since the next round
            changes them.
        on_collapse: Reaction to a network without a path of kept weights from input to output:
            ``"warn"``, ``"error"`` (the network stays dense) or ``"ignore"``. The check uses
            ``input_shape``, ``example_input`` or the first batch; without any of them, it can only
            report layers without kept weights.

    Returns:
        The masks, on the network's device. ``pruner.notes`` names the parameters that took no part
        and contains other remarks.

    Raises:
        TypeError: If the network is TorchScript or wrapped for parallel training, or
            ``example_input`` does not consist of tensors.
        ValueError: If an option is impossible, naming its value, before any work starts; or if the
            network has nothing to prune, or fails on its input.
        FloatingPointError: If a score is not finite, naming the layer.
        DeadNetwork: With ``on_collapse="error"``, if no path is left.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import SynFlow
        >>> network = torch.nn.Sequential(
        ...     torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
        ... )
        >>> masks = prune(network, SynFlow(), density=0.25, rounds=10, input_shape=(8,))
        >>> masks.kept, masks.total
        (48, 192)
    """
    check_network(network)
    options = PruningOptions(
        density=density,
        num_kept=num_kept,
        effective_density=effective_density,
        rounds=rounds,
        schedule=schedule,
        scope=scope,
        mask_bias=mask_bias,
        mask_norm=mask_norm,
        exclude=exclude,
        train_mode=train_mode,
        on_collapse=on_collapse,
    )
    prune_with = partial(_prune, pruner=pruner, earlier=masks, batches=batches, loss=loss)
    if options.effective_density is not None:
        inputs = example_of(network, input_shape, example_input)
        attempt = partial(prune_with, example_input=inputs)
        num_kept = _num_kept_for_effective_density(network, options, masks, inputs, attempt)
        options = replace(options, effective_density=None, num_kept=num_kept)
    return prune_with(
        network,
        options=options,
        input_shape=input_shape,
        example_input=example_input,
        on_round=on_round,
    )


def _prune(
    network: nn.Module,
    *,
    options: PruningOptions,
    pruner: Pruner,
    earlier: Masks | None,
    batches: Batches | Callable[[int], Batches],
    loss: Callable[[Tensor, Tensor], Tensor],
    input_shape: Sequence[int] | None = None,
    example_input: Tensor | Sequence[Tensor] | None = None,
    on_round: Callable[[int, float, Mapping[str, Tensor]], None] | None = None,
) -> Masks:
    """Prune a network to the ``density`` or ``num_kept`` of ``options``.

    Args:
        network: Network to prune, in place.
        options: Options without ``effective_density``.
        pruner: Pruner that computes the scores.
        earlier: Masks of an earlier pruning to continue from, or ``None``.
        batches: As in :func:`prune`.
        loss: As in :func:`prune`.
        input_shape: As in :func:`prune`.
        example_input: As in :func:`prune`.
        on_round: As in :func:`prune`.
    """
    state = PruningState.from_network(network, options.exclude)
    state.scope, state.loss, state.train_mode = options.scope, loss, options.train_mode
    if earlier is not None:
        _apply_earlier_masks(state, earlier)
    target = _target_density(state, options)
    has_example = input_shape is not None or example_input is not None
    if pruner.needs_input or options.mask_norm or has_example:
        state.inputs = example_of(network, input_shape, example_input)
    state.batches = _batches_of_round(pruner, batches, 0)
    check_inputs = _inputs_of_collapse_check(state, pruner, options)
    layers = _ranked_layers(state, target)
    if any(density < 1 for _, density in layers):
        pruner.prepare(state)
        if earlier is not None:
            _zero_removed(state)
        _run_rounds(state, pruner, options, layers, target, batches, on_round)
    else:
        pruner.notes = ()  # nothing is scored
    # Biases and normalisations are only counted in this note, whether they are masked or not.
    if note := left_out_note(network, left_out(network, state.masks), all_of_them=False):
        pruner.notes = (*pruner.notes, note)
    pruner.finish(state)
    state.weights.clear()  # frees memory for the steps that follow
    if earlier is not None:
        _check_nothing_regrown(state, pruner, earlier)
    followers = compute_bias_norm_masks(
        network,
        state.masks,
        state.inputs,
        mask_bias=options.mask_bias,
        mask_norm=options.mask_norm,
    )
    masks = Masks({**state.masks, **followers}, followers)
    if options.on_collapse != "ignore":
        _check_collapse(state, masks, pruner, options, check_inputs)
    masks.apply(network)
    return masks


def _run_rounds(
    state: PruningState,
    pruner: Pruner,
    options: PruningOptions,
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
        layers: Names of parameters that are ranked together, and the density to which they are
            pruned, relative to the weights that are kept at present.
        target: Density of the whole network after the last round.
        batches: As in :func:`prune`.
        on_round: As in :func:`prune`.
    """
    total = sum(mask.numel() for mask in state.masks.values())
    rounds = options.rounds or pruner.rounds
    schedule = options.schedule or pruner.schedule
    groups: list[PruningGroup] = []
    kept_after: list[list[int]] = []  # by group, then by round
    for names, density in layers:
        parts = make_groups(state, names, RegrowingGroup if pruner.regrows else PruningGroup)
        groups += parts
        kept_after += kept_per_round(schedule, density, rounds, [part.num_kept for part in parts])
    unscored: list[str] = []
    for index in range(rounds):
        num_kept = sum(kept[index] for kept in kept_after)
        state.density = target if index == rounds - 1 else Fraction(num_kept, total)
        if index and callable(batches):
            state.batches = _batches_of_round(pruner, batches, index)
        scores = dict(pruner.score(state))
        if index == 0:
            unscored = _unscored(state, pruner, scores, sum(kept[-1] for kept in kept_after))
        scores |= {
            name: torch.full_like(state.weights[name], torch.finfo(torch.float32).max)
            for name in unscored
        }
        for group, kept in zip(groups, kept_after, strict=True):
            group.prune_to(scores, kept[index])
        del scores  # frees memory for the callback
        if on_round is not None:
            on_round(index + 1, num_kept / total, state.masks)


def _target_density(state: PruningState, options: PruningOptions) -> Fraction:
    """Return the density of the whole network after the last round.

    Raises:
        ValueError: If more weights are to be kept than the network has.
    """
    if options.density is not None:
        return as_density(options.density)
    total = sum(weight.numel() for weight in state.weights.values())
    num_kept = options.num_kept or 0
    if num_kept > total:
        raise ValueError(
            f"num_kept: {num_kept} is more than the {total} prunable weights there are"
        )
    return Fraction(num_kept, total)


def _ranked_layers(state: PruningState, target: Fraction) -> list[tuple[list[str], Fraction]]:
    """Return the names of parameters that are ranked together, with the density to prune them to.

    The density is relative to the weights that are kept at present.

    Raises:
        ValueError: If more weights are to be kept than an earlier pruning has left.
    """
    together = (
        [list(state.weights)] if state.scope == "global" else [[name] for name in state.weights]
    )
    layers = []
    for names in together:
        size = sum(state.weights[name].numel() for name in names)
        kept = sum(int(state.masks[name].count_nonzero()) for name in names)
        wanted = kept_weights(size, target)
        if state.scope == "global" and wanted > kept:
            raise ValueError(
                f"{wanted} of {size} weights are to be kept, but masks= leaves {kept}; ask for"
                " fewer"
            )
        # In a dense network this is the density itself: one that is rounded to whole weights would
        # change the schedule by a weight here and there, and in iterated masks such differences
        # grow. A layer with fewer kept weights than wanted keeps all of them.
        density = target
        if kept < size:
            density = min(Fraction(1), Fraction(wanted, kept)) if kept else Fraction(1)
        layers.append((names, density))
    return layers


def _apply_earlier_masks(state: PruningState, masks: Masks) -> None:
    """Remove the weights that an earlier pruning removed.

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
    _zero_removed(state)


def _zero_removed(state: PruningState) -> None:
    """Set the working copies of removed weights to zero.

    A pruner may have set them to one in a layer whose weights are all zero.
    """
    for name, mask in state.masks.items():
        state.weights[name].masked_fill_(~mask, 0)


def _check_nothing_regrown(state: PruningState, pruner: Pruner, earlier: Masks) -> None:
    """Raise a ValueError if a weight is kept that an earlier pruning removed."""
    if any(
        bool((mask & ~earlier[name].to(mask.device)).any()) for name, mask in state.masks.items()
    ):
        raise ValueError(
            f"{pruner.name} brings back weights that masks= removed, so it cannot go on from them;"
            " leave masks out"
        )


def _unscored(
    state: PruningState, pruner: Pruner, scores: Mapping[str, Tensor | Saliency], num_kept: int
) -> list[str]:
    """Return the names of parameters whose scores are all zero in the first round.

    Such parameters stay dense, since nothing is known about their weights; a note names them.

    Args:
        state: State of the pruning.
        pruner: Pruner that computed the scores.
        scores: Scores of the first round, by parameter name.
        num_kept: Number of weights kept after the last round.

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
    if state.scope == "global" and size > num_kept:
        raise ValueError(
            f"{pruner.name} scores all {size} weights of {', '.join(names)} zero and so would keep"
            f" them, but only {num_kept} weights are to be left; exclude them, choose a larger"
            " density, or a pruner that needs no signal (SynFlow, Magnitude)"
        )
    consequence = "kept dense" if state.scope == "global" else "cut by position"
    pruner.notes = (
        *pruner.notes,
        f"{consequence}, since their scores are zero throughout: {', '.join(names)}",
    )
    return names


def _batches_of_round(
    pruner: Pruner, batches: Batches | Callable[[int], Batches], index: int
) -> Batches:
    """Return the batches of a round, checked if the pruner scores on them.

    Args:
        pruner: Pruner that computes the scores.
        batches: As in :func:`prune`.
        index: Index of the round, counted from 0.

    Raises:
        ValueError: If they are not pairs (images, labels).
    """
    if not pruner.needs_batches:
        return () if callable(batches) else batches
    drawn = batches(index) if callable(batches) else batches
    _check_batches(pruner, drawn)
    return drawn


def _check_batches(pruner: Pruner, batches: Batches) -> None:
    expected = f"{pruner.name} scores on data: give batches=, a list of (images, labels) pairs"
    if not isinstance(batches, Sequence) or len(batches) == 0:
        given = "none" if isinstance(batches, Sequence) else f"a {type(batches).__name__}"
        raise ValueError(f"{expected}; got {given}")
    for index, batch in enumerate(batches):
        if not (
            isinstance(batch, (tuple, list))
            and len(batch) == 2
            and all(isinstance(part, Tensor) and part.dim() for part in batch)
        ):
            raise ValueError(f"{expected}; batches[{index}] is no pair of tensors")
        if len(batch[0]) != len(batch[1]):
            raise ValueError(
                f"{expected}; batches[{index}] has {len(batch[0])} images and {len(batch[1])}"
                " labels"
            )
    if not any(len(images) for images, _ in batches):
        raise ValueError(f"{expected}; there are no images in these")


def _inputs_of_collapse_check(
    state: PruningState, pruner: Pruner, options: PruningOptions
) -> tuple[Tensor, ...] | None:
    """Return example inputs for the search for a path, or ``None`` if there are none.

    Raises:
        ValueError: If they are missing and a collapse is to be an error.
    """
    inputs = state.inputs
    if inputs is None and pruner.needs_batches and options.on_collapse != "ignore":
        images = next(images for images, _ in state.batches if len(images))
        inputs = example_of(state.network, None, images[:1])
    if inputs is None and options.on_collapse == "error":
        raise ValueError(
            "on_collapse='error' has to see whether a path is left: give input_shape=(C, H, W) or"
            " example_input="
        )
    return inputs


def _check_collapse(
    state: PruningState,
    masks: Masks,
    pruner: Pruner,
    options: PruningOptions,
    inputs: tuple[Tensor, ...] | None,
) -> None:
    """Warn or raise an error if no path of kept weights leads from input to output.

    Args:
        state: State of the pruning.
        masks: Masks that the pruning has computed.
        pruner: Pruner that computed the scores.
        options: Options whose ``on_collapse`` is ``"warn"`` or ``"error"``.
        inputs: Example inputs, or ``None`` if there are none.

    Raises:
        DeadNetwork: If there is no path and a collapse is to be an error.
    """
    try:
        collapse = _describe_collapse(state.network, masks, inputs, state.linear_network)
    except (RuntimeError, ValueError) as error:
        if options.on_collapse == "error":
            raise
        # The check has failed, but the masks are correct.
        pruner.notes = (
            *pruner.notes,
            f"whether a path from input to output is left could not be checked: {error}",
        )
        return
    if collapse is None:
        return
    if options.on_collapse == "error":
        raise DeadNetwork(f"{collapse}, or on_collapse='warn' to prune it anyway")
    # The frames above this one are _prune(), prune(), its decorator and the caller.
    warnings.warn(
        f"{pruner.name}: {collapse}, or on_collapse='ignore' if this is meant",
        UserWarning,
        stacklevel=5,
    )


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
    paths = Connectivity(network, inputs, skeleton=linear_network)
    return (
        None
        if paths.left(masks)
        else disconnection_message(masks.density, paths.broken(masks), empty)
    )


def _num_kept_for_effective_density(
    network: nn.Module,
    options: PruningOptions,
    masks: Masks | None,
    inputs: tuple[Tensor, ...],
    attempt: Callable[..., Masks],
) -> int:
    """Return the number of weights to keep for an effective density as near as possible.

    Args:
        network: Network under study, which is not changed; copies of it are pruned.
        options: Options with an ``effective_density``.
        masks: Masks of an earlier pruning, or ``None``.
        inputs: Example inputs of the network.
        attempt: Function that prunes a network with given ``options``.

    Raises:
        ValueError: If more weights are to be effective than an earlier pruning has left.
    """
    assert options.effective_density is not None
    total = sum(weight.numel() for weight in prunable(network, options.exclude).values())
    highest = total if masks is None else masks.kept
    wanted = kept_weights(total, as_density(options.effective_density))
    if wanted > highest:
        raise ValueError(
            f"{wanted} of {total} weights are to be effective, but masks= leaves {highest}; ask for"
            " fewer"
        )
    paths = Connectivity(network, inputs)

    def count_effective(num_kept: int) -> int:
        attempted = replace(
            options, effective_density=None, num_kept=num_kept, on_collapse="ignore"
        )
        found = attempt(copy.deepcopy(network), options=attempted)
        return sum(int(mask.count_nonzero()) for mask in paths.effective(found).values())

    return nearest_attainable(count_effective, wanted, highest)


def nearest_attainable(measure: Callable[[int], int], wanted: int, highest: int) -> int:
    """Return an integer at which ``measure`` is as near as possible to ``wanted``, by bisection.

    The result is exact if ``measure`` never decreases. If it does, as the number of effective
    weights of an iterated pruner may, the result is the nearest of the integers that were tried,
    next to a place where ``measure`` crosses ``wanted``.

    Args:
        measure: Function from an integer to an integer that is not larger.
        wanted: Wanted value of ``measure``, in [1, ``highest``].
        highest: Largest argument of ``measure``.

    Example:
        >>> nearest_attainable(lambda n: n // 2, 10, 100)
        20
    """
    tried: dict[int, int] = {}

    def missing_at(argument: int) -> int:
        tried[argument] = measure(argument)
        return wanted - tried[argument]

    # Usually little is missing, so the search starts nearby and widens.
    low, high = wanted, wanted
    while (missing := missing_at(high)) > 0 and high < highest:
        low, high = high + 1, min(highest, high + 2 * max(missing, high - low))
    while low < high and wanted not in tried.values():
        middle = (low + high) // 2
        if missing_at(middle) > 0:
            low = middle + 1
        else:
            high = middle
    return min(tried, key=lambda argument: (abs(tried[argument] - wanted), argument))
