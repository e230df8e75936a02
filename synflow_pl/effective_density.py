"""The number of weights to keep for an effective density, by bisection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from synflow_pl.flow import Connectivity, acting_on
from synflow_pl.graph.network_copy import duplicate
from synflow_pl.masks import Masks
from synflow_pl.prunable_parameters import prunable
from synflow_pl.pruning_options import PruningOptions
from synflow_pl.schedules import as_density, kept_weights

__all__ = ["nearest_attainable", "num_kept_for_effective_density"]


def num_kept_for_effective_density(
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
    weights = prunable(network, options.exclude, options.include, acting_on(network, inputs))
    total = sum(weight.numel() for weight in weights.values())
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
        found = attempt(duplicate(network), options=attempted)
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
