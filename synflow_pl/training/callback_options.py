"""Check the options of PruneAtInit against each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from synflow_pl.masks import Masks
from synflow_pl.pruners import Pruner
from synflow_pl.pruners.base import PrunerWrapper
from synflow_pl.pruners.batch_loss import is_binary
from synflow_pl.pruners.drop_and_grow import DropAndGrow
from synflow_pl.pruners.sanity import SANITY
from synflow_pl.pruning_options import PruningOptions

__all__ = ["check_now", "make_options"]


def make_options(
    pruner: Pruner | None,
    *,
    sanity: str | None,
    at_epoch: int,
    score_from: str | os.PathLike[str] | None,
    masks_path: str | os.PathLike[str] | None,
    from_file: Masks | None,
    on_collapse: str,
    compact: bool,
    freeze_dead: bool,
    loss: object,
    loss_fn: object,
    exclude: Sequence[str] | str,
    include: Sequence[str] | str,
    **options: Any,
) -> PruningOptions | None:
    """Return the options of ``prune()``, after all options are checked against each other.

    Args:
        pruner: Pruner, or ``None`` for a dense training.
        sanity: Name of a sanity check.
        at_epoch: Epoch before which the network is pruned.
        score_from: Run or checkpoint whose weights are scored.
        masks_path: File of masks to train with.
        from_file: Masks in that file.
        on_collapse: What happens if no path of kept weights connects input and output.
        compact: Whether a smaller network is trained.
        freeze_dead: Whether biases and gains of units without a path from the input are pruned.
        loss: Function from (outputs, labels) to the loss that a pruner scores by on data.
        loss_fn: Function from (module, batch) to that loss.
        exclude: Pattern, or list of patterns, of parameter names that stay dense.
        include: Pattern, or list of patterns, of names of further parameters to prune.
        options: Other options of ``prune()``, at least ``density``, ``num_kept``,
            ``effective_density`` and ``rounds``.

    Returns:
        Options without a check of the connectivity, since the diagnosis of the callback reports
        it; ``None`` without a pruner or with masks from a file.

    Raises:
        ValueError: If an option is impossible, naming its value.
        TypeError: If ``loss`` or ``loss_fn`` cannot be called with two arguments.
    """
    _refuse_wrapped(pruner)
    if isinstance(pruner, DropAndGrow):
        _check_moving(
            pruner,
            compact=compact,
            freeze_dead=freeze_dead,
            sanity=sanity,
            score_from=score_from,
            **options,
        )
    pruning: PruningOptions | None = None
    density, num_kept, rounds = options["density"], options["num_kept"], options["rounds"]
    if masks_path is None and pruner is not None:
        pruning = PruningOptions(
            **options, exclude=_listed(exclude), include=_listed(include), on_collapse="ignore"
        )
        pruning.check_pruner(pruner)
    elif masks_path is None and (
        density not in (None, 1) or num_kept is not None or rounds is not None
    ):
        raise ValueError(
            f"density={density}, num_kept={num_kept}, rounds={rounds}, but no pruner; name one,"
            " or leave them out for a dense network"
        )
    if on_collapse not in ("error", "warn"):
        raise ValueError(f"on_collapse: {on_collapse!r} is not one of error, warn")
    if sanity is not None and (sanity not in SANITY or pruner is None):
        raise ValueError(
            f"sanity: {sanity!r} must be one of {', '.join(SANITY)}, and needs a pruner"
        )
    if loss is not None and loss_fn is not None:
        raise ValueError(
            "give either loss, a function of (outputs, labels), or loss_fn, a function of (module,"
            " batch)"
        )
    for name, function, arguments in (
        ("loss", loss, "outputs, labels"),
        ("loss_fn", loss_fn, "module, batch"),
    ):
        if function is not None and not is_binary(function):
            raise TypeError(
                f"{name}: {function!r} must be a module or function of two arguments, ({arguments})"
                " to the mean loss"
            )
    gradual = pruner is not None and pruner.end_fraction is not None
    if pruning is not None and pruning.structured:
        _check_structured(pruning, sanity, gradual)
    effective_density = options["effective_density"]
    _check_time(pruner, at_epoch, score_from, masks_path, sanity, effective_density)
    if compact and (
        at_epoch or (pruner is not None and masks_path is None and pruner.end_fraction is not None)
    ):
        raise ValueError(
            "compact: true needs masks that are final before the first step; leave out at_epoch"
            " and gradual pruning"
        )
    if isinstance(pruner, DropAndGrow) and from_file is not None and from_file.followers:
        raise ValueError(
            f"masks_path: {os.fspath(masks_path)!r} masks biases or gains, which"  # type: ignore[arg-type]
            f" {pruner.name} cannot update; give masks of weights alone"
        )
    return pruning


def _refuse_wrapped(pruner: Pruner | None) -> None:
    """Refuse a wrapper, such as a sanity check, of a pruner whose masks change during training.

    Args:
        pruner: Pruner, or ``None`` for a dense training.

    Raises:
        ValueError: If it is such a wrapper.
    """
    inner = pruner
    while isinstance(inner, PrunerWrapper):
        inner = inner.pruner
        if isinstance(inner, DropAndGrow):
            raise ValueError(
                f"{type(pruner).__name__} wraps {inner.name}, whose masks change during training;"
                f" give the wrapper of another pruner as initial of {inner.name}, or leave it out"
            )


def _check_moving(pruner: DropAndGrow, *, granularity: str, **options: Any) -> None:
    """Refuse what is impossible if masks move during training, naming the option to drop.

    Args:
        pruner: Method of dynamic sparse training.
        granularity: What is removed together.
        options: Other options of the callback.

    Raises:
        ValueError: If there is such an option.
    """
    if granularity != "weight":
        raise ValueError(
            f"granularity: {granularity!r} removes groups of weights, and {pruner.name} drops and"
            " grows single weights; leave one of them out"
        )
    for name in ("effective_density", "flops", "parameters", "latency"):
        if options[name] is not None:
            raise ValueError(
                f"{name}: {options[name]}, but {pruner.name} holds the number of weights of each"
                " layer constant and nothing else; give density or num_kept"
            )
    for name in ("compact", "freeze_dead", "mask_bias", "mask_norm", "sanity", "score_from"):
        if options[name]:
            raise ValueError(
                f"{name}: {str(options[name]).lower()} needs masks that do not change, and"
                f" {pruner.name} changes them during training; leave one of them out"
            )


def _check_structured(options: PruningOptions, sanity: str | None, gradual: bool) -> None:
    """Refuse what is impossible for groups of weights, naming the option to drop.

    Args:
        options: Options of the pruning.
        sanity: Name of a sanity check.
        gradual: Whether the rounds are spread over the training.

    Raises:
        ValueError: If there is such an option.
    """
    if sanity == "shuffle":
        raise ValueError(
            f"sanity: 'shuffle' moves single weights, and granularity {options.granularity!r}"
            " removes groups of them; leave one of them out"
        )
    if gradual and options.density is None and options.num_kept is None:
        raise ValueError(
            f"granularity {options.granularity!r}, flops {options.flops}, parameters"
            f" {options.parameters}: a gradual pruning needs density or num_kept"
        )


def _listed(patterns: Sequence[str] | str) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _check_time(
    pruner: Pruner | None,
    at_epoch: int,
    score_from: str | os.PathLike[str] | None,
    masks_path: str | os.PathLike[str] | None,
    sanity: str | None,
    effective_density: float | None,
) -> None:
    """Refuse options that contradict each other about when to prune and which weights to score.

    Args:
        pruner: Pruner, or ``None`` for a dense training.
        at_epoch: Epoch before which the network is pruned.
        score_from: Run or checkpoint whose weights are scored.
        masks_path: File of masks to train with.
        sanity: Name of a sanity check.
        effective_density: Fraction of weights that are kept and on a path of kept weights.

    Raises:
        ValueError: If two options contradict each other, naming the option to drop.
    """
    if isinstance(at_epoch, bool) or not isinstance(at_epoch, int) or at_epoch < 0:
        raise ValueError(f"at_epoch: {at_epoch!r} must be a whole number of epochs, at least 0")
    gradual = pruner is not None and pruner.end_fraction is not None
    if score_from is not None and (
        pruner is None or masks_path is not None or at_epoch > 0 or gradual
    ):
        raise ValueError(
            "score_from scores the weights of another run, so it needs a pruner that prunes when"
            " the fit starts; drop masks_path, at_epoch and gradual pruning, or drop score_from"
        )
    if score_from is not None and sanity in ("shuffle", "reinitialise"):
        raise ValueError(
            f"sanity: {sanity!r} cannot be combined with score_from, which starts from the masks of"
            " that run and rewinds weights; invert can"
        )
    if gradual and sanity is not None:
        raise ValueError(
            f"sanity: {sanity!r} checks a pruning that happens at once, and"
            f" {type(pruner).__name__} is gradual"
        )
    if gradual and effective_density is not None:
        raise ValueError(
            f"effective_density: {effective_density} cannot be reached by a gradual pruning; give"
            " density"
        )
    if sanity == "reinitialise" and at_epoch > 0:
        raise ValueError(
            "sanity: 'reinitialise' draws the weights anew that training starts from; drop at_epoch"
        )


def check_now(pruner: Pruner | None, at_epoch: int) -> None:
    """Refuse to prune without a fit if the options do not allow it.

    Args:
        pruner: Pruner; ``None`` if there is none or the masks come from a file.
        at_epoch: Epoch before which the network is pruned.

    Raises:
        ValueError: If there is no pruner, or the pruning happens during a training.
    """
    if pruner is None:
        raise ValueError(
            "there is no pruner to prune by; name one (pruning.pruner), and leave out"
            " pruning.masks_path"
        )
    if pruner.end_fraction is not None or at_epoch:
        during = (
            f"{type(pruner).__name__} prunes"
            if pruner.end_fraction is not None
            else f"at_epoch: {at_epoch} is"
        )
        raise ValueError(
            f"{during} during a training, and nothing is trained here; choose another pruner or"
            " time, or use fit"
        )
