"""The groups and the budget of a pruning, from its options."""

from __future__ import annotations

from torch import Tensor

from synflow_pl.bias_norm_masks import has_units
from synflow_pl.compaction.checked_trace import trace_for_compaction
from synflow_pl.flow import trace
from synflow_pl.granularity import Granularity
from synflow_pl.graph.trace import Graph
from synflow_pl.pruners.base import PruningState
from synflow_pl.pruning_options import PruningOptions
from synflow_pl.schedules import as_density, kept_weights
from synflow_pl.structure.costs import Costs, flop_costs, parameter_costs, weight_costs
from synflow_pl.structure.groups import Groups
from synflow_pl.structure.matrices import matrix_views
from synflow_pl.structure.tiles import Tiles
from synflow_pl.structure.unit_groups import Units

__all__ = ["structured_budget"]


def structured_budget(
    state: PruningState, options: PruningOptions, inputs: tuple[Tensor, ...] | None
) -> tuple[Groups, float, str]:
    """Return the groups of weights, the largest cost, and the option that sets it, for messages.

    Args:
        state: State of the pruning, prepared by the pruner.
        options: Options of the pruning.
        inputs: Example inputs, or ``None``.

    Raises:
        ValueError: If inputs are needed and missing, or nothing can be removed.
    """
    granularity = Granularity.parse(options.granularity)
    if inputs is None and (granularity.kind == "unit" or options.flops is not None):
        needed = "granularity: 'unit'" if granularity.kind == "unit" else f"flops: {options.flops}"
        raise ValueError(
            f"{needed} needs the graph of the network; give input_shape=(C, H, W) or example_input="
        )
    weights = state.masks
    known = all(has_units(state.network, name) for name in weights)
    graph = None
    if inputs is not None and (options.flops is not None or not known):
        graph = trace(state.network, inputs)
    costs, largest, target = _costs(state, options, graph)
    if granularity.kind == "unit":
        assert inputs is not None
        recording = trace_for_compaction(state.network, inputs)
        units = Units(recording, weights, state.ranked_separately, costs, options.scope)
        return units, largest, target
    views = matrix_views(state.network, weights, graph)
    tiles = Tiles(granularity, views, weights, state.ranked_separately, costs, options.scope)
    if granularity.kind == "n:m":
        return tiles, tiles.pattern_cost(), f"granularity {options.granularity}"
    return tiles, largest, target


def _costs(
    state: PruningState, options: PruningOptions, graph: Graph | None
) -> tuple[Costs, float, str]:
    """Return the costs of the weights, the largest cost and the option that sets it."""
    weights = state.masks
    total = sum(mask.numel() for mask in weights.values())
    if options.flops is not None:
        assert graph is not None
        costs = flop_costs(graph, weights)
        largest = float(as_density(options.flops)) * costs.total(weights)
        return costs, largest, f"flops {options.flops}"
    if options.parameters is not None:
        costs = parameter_costs(state.network, weights)
        largest = float(as_density(options.parameters)) * costs.total(weights)
        return costs, largest, f"parameters {options.parameters}"
    costs = weight_costs(weights)
    if options.num_kept is not None:
        return costs, float(options.num_kept), f"num_kept {options.num_kept}"
    if options.density is not None:
        kept = kept_weights(total, as_density(options.density))
        return costs, float(kept), f"density {options.density}"
    return costs, float(total), "granularity"
