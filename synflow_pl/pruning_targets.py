"""The density that a pruning ends with, for the whole network and for what is ranked together."""

from __future__ import annotations

from fractions import Fraction

from synflow_pl.pruners.base import PruningState
from synflow_pl.pruning_options import PruningOptions
from synflow_pl.schedules import as_density, kept_weights

__all__ = ["ranked_layers", "target_density"]


def target_density(state: PruningState, options: PruningOptions) -> Fraction:
    """Return the density of the whole network after the last round.

    Args:
        state: State of the pruning, before the first round.
        options: Options with a density or a number of weights; without either of them every weight
            is kept.

    Raises:
        ValueError: If more weights are to be kept than the network has.
    """
    if options.density is not None:
        return as_density(options.density)
    if options.num_kept is None:
        return Fraction(1)
    total = sum(weight.numel() for weight in state.weights.values())
    num_kept = options.num_kept
    if num_kept > total:
        raise ValueError(
            f"num_kept: {num_kept} is more than the {total} prunable weights there are"
        )
    return Fraction(num_kept, total)


def ranked_layers(state: PruningState, target: Fraction) -> list[tuple[list[str], Fraction]]:
    """Return the names of parameters that are ranked together, with the density to prune them to.

    The density is relative to the weights that are kept at present.

    Args:
        state: State of the pruning, with the masks of an earlier pruning if there was one.
        target: Density of the whole network after the last round.

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
