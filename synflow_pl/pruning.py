"""prune(): choose the masks of a network and apply them.

A pruner only computes scores. Which weights are ranked together (scope), how many are kept after
each round (schedule) and the selection itself are independent of the pruner, so that pruners can
be compared with everything else equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from synflow_pl.automatic_rounds import run_automatic_rounds
from synflow_pl.bias_norm_masks import compute_bias_norm_masks
from synflow_pl.effective_density import num_kept_for_effective_density
from synflow_pl.fixed_rounds import run_fixed_rounds
from synflow_pl.flow import acting_on, example_of
from synflow_pl.masks import Masks
from synflow_pl.numerics import full_precision
from synflow_pl.parameters import check_network, left_out, left_out_note
from synflow_pl.prunable_parameters import prunable
from synflow_pl.pruners.base import Pruner, PruningState
from synflow_pl.pruners.batch_loss import BatchLoss, as_batch_loss
from synflow_pl.pruning_checks import (
    Batches,
    apply_earlier_masks,
    batches_of_round,
    check_collapse,
    check_collapse_inputs,
    check_nothing_regrown,
    zero_removed,
)
from synflow_pl.pruning_options import PruningOptions
from synflow_pl.pruning_targets import ranked_layers, target_density
from synflow_pl.structure import flops_for_latency, run_structured_rounds, structured_budget

__all__ = ["prune"]


@full_precision()
def prune(
    network: nn.Module,
    pruner: Pruner,
    *,
    density: float | Fraction | None = None,
    num_kept: int | None = None,
    effective_density: float | Fraction | None = None,
    flops: float | Fraction | None = None,
    parameters: float | Fraction | None = None,
    latency: float | Fraction | None = None,
    granularity: str = "weight",
    group_score: Literal["sum", "mean", "per_cost"] = "sum",
    masks: Masks | None = None,
    rounds: int | Literal["auto"] | None = None,
    margin: float = 0.5,
    schedule: Literal["exponential", "linear", "cubic"] | None = None,
    scope: Literal["global", "local"] = "global",
    input_shape: Sequence[int] | None = None,
    example_input: Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
    batches: Batches | Callable[[int], Batches] = (),
    loss: BatchLoss | Callable[[Any, Any], Tensor] = cross_entropy,
    mask_bias: bool = False,
    mask_norm: bool = False,
    exclude: Iterable[str | type[nn.Module]] = (),
    include: Iterable[str | type[nn.Module]] = (),
    train_mode: bool = False,
    on_round: Callable[[int, float, Mapping[str, Tensor]], None] | None = None,
    on_collapse: Literal["warn", "error", "ignore"] = "warn",
) -> Masks:
    """Prune a network in place: compute its masks, then set the pruned weights to zero.

    The network is pruned on its own device. It is not changed before the last round is finished,
    so an error or an interruption leaves it dense.

    Args:
        network: Any module with linear, convolution, attention or recurrent layers, or with other
            matrices that act on the signal.
        pruner: Pruner that computes the scores.
        density: Fraction of prunable weights kept, in (0, 1]. It is exact: of n weights,
            ``n - floor((1 - density) * n)`` are kept.
        num_kept: Number of weights kept, in [1, n], instead of ``density``; with
            ``scope="global"`` only.
        effective_density: Fraction of prunable weights that are kept and lie on a path of kept
            weights from input to output, in (0, 1], instead of ``density``. It is approached by
            bisection over ``num_kept``, with copies of the network; the result is the nearest
            possible value if the effective density increases with ``num_kept``.
        flops: Fraction of the FLOPs of one forward pass that are kept, in (0, 1], instead of
            ``density``. It is the nearest attainable from below, as are all budgets of groups of
            weights.
        parameters: Fraction of all parameters that are kept, in (0, 1], instead of ``density``.
        latency: Fraction of the duration of a forward pass that is kept, in (0, 1], instead of
            ``density``, with ``granularity="unit"``. Copies of the network are pruned, compacted
            and measured side by side with it on the example input, and the largest that meet it in
            the median decide the FLOPs that are kept; ``pruner.notes`` states the quartiles.
        granularity: What is removed together. A group of weights has the sum of their scores.

            - ``"weight"``: single weights.
            - ``"unit"``: output channels and neurons, with everything in the network that belongs
              to them, as :func:`synflow_pl.compact` removes them.
            - ``"kernel"``: the weights of a convolution between one input and one output.
            - ``"block:AxB"``: blocks of A outputs by B inputs.
            - ``"N:M"``: N weights kept of every M consecutive inputs (``"2:4"``), without a
              ``density``. Layers whose inputs do not divide by M stay dense and are named; with
              ``"N:M-padded"`` their last group is smaller.

        group_score: Score of a group of weights: the ``"sum"`` of the scores of its weights, their
            ``"mean"``, so that a group has no advantage from its size, or ``"per_cost"``, the sum
            over the weights, FLOPs or parameters of the group, whichever are limited.
        masks: Masks of an earlier pruning to continue from. Weights that they prune stay pruned,
            and the rounds start at their density. ``density`` and ``num_kept`` still count all
            prunable weights.
        rounds: Number of rounds, at least 1; ``None`` uses the pruner's own number (100 for
            SynFlow, 1 for one-shot pruners). ``"auto"``, for SynFlow and SynFlowL2, prunes in each
            round as many weights as certainly leave a path from input to output, until the target
            is reached; :mod:`synflow_pl.automatic_rounds` states the argument and its conditions.
        margin: Fraction of the total flow R, in (0, 1), to which the scores that a round prunes
            may add up with ``rounds="auto"``. A smaller margin takes more rounds.
        schedule: Density after each round: ``"exponential"``, ``"linear"`` or ``"cubic"``; ``None``
            uses the pruner's own (exponential except for gradual pruning).
        scope: ``"global"`` to rank the weights of all layers together, ``"local"`` to rank each
            layer alone and prune it to ``density``.
        input_shape: Shape (C, H, W) of one input, for pruners that need it and networks with one
            input.
        example_input: Arguments of ``forward()``, with the batch dimension, instead of
            ``input_shape``: a tensor, a tuple or list of arguments by position, or a dictionary of
            arguments by keyword. Tensors may be in nested tuples, lists and dictionaries, and
            arguments may be anything else (a number, ``None``).
        batches: Pairs (inputs (N, ...), labels (N, ...)), for pruners that score on data, or
            batches of any structure that ``loss`` takes; or a function from the index of a round,
            counted from 0, to such batches, for fresh ones in every round. The function must return
            the same batches for the same index.
        loss: Function from (outputs, labels) to the mean loss of a batch, for pruners that score on
            data and networks with one input and one output. For any other network and batch, a
            function of two parameters of which the second is called ``batch``: from (network,
            batch) to the mean loss (``loss=lambda network, batch: network(**batch).loss``). It runs
            in eval mode, and what it changes is restored.
        mask_bias: Whether to mask biases too, each exactly when its unit has no kept weight;
            ``density`` still counts weights only.
        mask_norm: Whether to mask gains and shifts too, of BatchNorms and GroupNorms that read the
            output of one prunable layer and nothing else.
        exclude: Parameters that stay dense: shell-style patterns of names (``["fc.*"]`` for a dense
            classifier) and classes of modules.
        include: Further parameters to prune, such as embeddings, named in the same way.
        train_mode: Whether pruners that score on data do so in train mode.
        on_round: Function that is called with (round, density, masks) after each round, rounds
            counted from 1. The masks by name are only valid during the call, since the next round
            changes them.
        on_collapse: Reaction to a network without a path of kept weights from input to output:
            ``"warn"``, ``"error"`` (the network stays dense) or ``"ignore"``. The check uses
            ``input_shape``, ``example_input`` or the first batch; without any of them, it can only
            report layers without kept weights.

    Returns:
        The masks, on the network's device. ``pruner.notes`` names the parameters that are not
        prunable and contains other remarks.

    Raises:
        TypeError: If the network is TorchScript or wrapped for parallel training,
            ``example_input`` is no tensor, tuple, list or dictionary, or ``loss`` does not take two
            arguments.
        ValueError: If an option is impossible, naming its value, before any work starts; or if the
            network has nothing to prune, or fails on its input; or if with ``rounds="auto"`` every
            path needs more weights than are to be kept.
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
        flops=flops,
        parameters=parameters,
        latency=latency,
        granularity=granularity,
        group_score=group_score,
        rounds=rounds,
        margin=margin,
        schedule=schedule,
        scope=scope,
        mask_bias=mask_bias,
        mask_norm=mask_norm,
        exclude=exclude,
        include=include,
        train_mode=train_mode,
        on_collapse=on_collapse,
    )
    options.check_pruner(pruner)
    prune_with = partial(
        _prune, pruner=pruner, earlier=masks, batches=batches, loss=as_batch_loss(loss)
    )
    if options.effective_density is not None:
        inputs = example_of(network, input_shape, example_input)
        attempt = partial(prune_with, example_input=inputs)
        num_kept = num_kept_for_effective_density(network, options, masks, inputs, attempt)
        options = replace(options, effective_density=None, num_kept=num_kept)
    measured: tuple[str, ...] = ()
    if options.latency is not None:
        inputs = example_of(network, input_shape, example_input)
        attempt = partial(prune_with, example_input=inputs)
        kept_flops, note = flops_for_latency(network, options, inputs, attempt)
        options, measured = replace(options, latency=None, flops=kept_flops), (note,)
    pruned = prune_with(
        network,
        options=options,
        input_shape=input_shape,
        example_input=example_input,
        on_round=on_round,
    )
    pruner.notes = (*pruner.notes, *measured)
    return pruned


def _prune(
    network: nn.Module,
    *,
    options: PruningOptions,
    pruner: Pruner,
    earlier: Masks | None,
    batches: Batches | Callable[[int], Batches],
    loss: BatchLoss,
    input_shape: Sequence[int] | None = None,
    example_input: Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
    on_round: Callable[[int, float, Mapping[str, Tensor]], None] | None = None,
) -> Masks:
    """Prune a network to the ``density`` or ``num_kept`` of ``options``.

    Args:
        network: Network to prune, in place.
        options: Options without ``effective_density``.
        pruner: Pruner that computes the scores.
        earlier: Masks of an earlier pruning to continue from, or ``None``.
        batches: As in :func:`prune`.
        loss: Loss of a batch.
        input_shape: As in :func:`prune`.
        example_input: As in :func:`prune`.
        on_round: As in :func:`prune`.
    """
    if not any(parameter.is_floating_point() for parameter in network.parameters()):
        prunable(network)  # the error names what the parameters hold
    inputs = None
    if input_shape is not None or example_input is not None:
        inputs = example_of(network, input_shape, example_input)
    first = batches_of_round(loss, pruner, batches, 0)
    shown = inputs
    if shown is None and pruner.needs_batches and (example := loss.example(first)) is not None:
        shown = example_of(network, None, example)
    acting: tuple[str, ...] = ()
    untraced: tuple[str, ...] = ()
    if shown is not None:
        try:
            acting = acting_on(network, shown)
        # A pruner that needs the graph will raise the error itself.
        except (RuntimeError, ValueError) as error:
            untraced = (f"whether other parameters act on the signal could not be seen: {error}",)
    state = PruningState.from_network(network, options.exclude, options.include, acting)
    state.scope, state.loss, state.train_mode = options.scope, loss, options.train_mode
    if earlier is not None:
        apply_earlier_masks(state, earlier)
    target = target_density(state, options)
    if inputs is None and (pruner.needs_input or options.mask_norm):
        inputs = example_of(network, input_shape, example_input)  # the error that asks for one
    state.inputs = inputs
    state.batches = first
    shown = inputs if shown is None else shown
    check_collapse_inputs(shown, options.on_collapse)
    layers = ranked_layers(state, target) if not options.structured else []
    if options.structured:
        pruner.prepare(state)
        if earlier is not None:
            zero_removed(state)
        groups, budget, named = structured_budget(state, options, shown)
        run_structured_rounds(state, pruner, options, groups, budget, named, batches, on_round)
    elif any(density < 1 for _, density in layers):
        pruner.prepare(state)
        if earlier is not None:
            zero_removed(state)
        if options.rounds == "auto":
            state.density = target
            run_automatic_rounds(
                state,
                pruner,
                layers,
                margin=options.margin,
                target=(
                    f"density {options.density}"
                    if options.density is not None
                    else f"num_kept {options.num_kept}"
                ),
                batches=batches,
                on_round=on_round,
            )
        else:
            rounds = options.rounds or pruner.rounds
            run_fixed_rounds(state, pruner, options, rounds, layers, target, batches, on_round)
    else:
        pruner.notes = ()  # nothing is scored
    # Biases and normalisations are only counted in this note, whether they are masked or not.
    if note := left_out_note(network, left_out(network, state.masks), all_of_them=False):
        pruner.notes = (*pruner.notes, note)
    pruner.notes = (*pruner.notes, *untraced)
    pruner.finish(state)
    state.weights.clear()  # frees memory for the steps that follow
    if earlier is not None:
        check_nothing_regrown(state, pruner, earlier)
    followers = compute_bias_norm_masks(
        network,
        state.masks,
        state.inputs,
        mask_bias=options.mask_bias,
        mask_norm=options.mask_norm,
    )
    masks = Masks({**state.masks, **followers}, followers)
    if options.on_collapse != "ignore":
        check_collapse(state, masks, pruner, options.on_collapse, shown, options.rounds)
    masks.apply(network)
    return masks
