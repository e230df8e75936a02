"""Units: output channels and neurons, with everything in the network that belongs to them.

:mod:`synflow_pl.compaction.channel_groups` finds the groups. A group has the rows of a weight, the
entries of its bias and normalisation, and the columns of all weights that read them. Residual sums
join their terms, and an attention joins the channels of a head in queries, keys, values and output.
A network whose units are removed in this way has the outputs of the smaller one that
:func:`synflow_pl.compact` makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from synflow_pl.compaction.attention_heads import find_heads
from synflow_pl.compaction.channel_groups import ChannelGroups
from synflow_pl.compaction.slice_ids import representatives
from synflow_pl.graph.trace import Graph
from synflow_pl.structure.costs import Costs
from synflow_pl.structure.groups import Groups, as_rankings, total_cost

__all__ = ["Units"]


class _Counts(NamedTuple):
    """Number of weights of one layer by the units of its dimensions.

    Attributes:
        axes: Numbers of the units along each dimension of ``counts``.
        counts: Number of weights, float64.
        uniform: The number, if it is the same everywhere.
    """

    axes: tuple[Tensor, ...]
    counts: Tensor
    uniform: float | None

    def kept(self, kept: Tensor) -> float:
        """Return how many weights are left if some units are kept, (groups + 1,) float64."""
        if self.uniform is not None:
            return self.uniform * math.prod(float(kept[axis].sum()) for axis in self.axes)
        counts = self.counts
        for axis in self.axes:
            counts = torch.tensordot(kept[axis], counts, ([0], [0]))
        return float(counts)


class Units(Groups):
    """Units of a traced network.

    Args:
        graph: Graph of the network.
        masks: Masks of an earlier pruning, or of the dense network, by name.
        separate: Bool tensors in the weights' shapes, by name, True for weights that are ranked by
            themselves; they do not count in the scores of units that have others.
        costs: Costs of the weights.
        scope: ``"global"`` or ``"local"``; a layer is then a set of units of one dimension.

    Raises:
        ValueError: If no unit can be removed.
    """

    unscored = "ranked by the other weights of their units"

    def __init__(
        self,
        graph: Graph,
        masks: Mapping[str, Tensor],
        separate: Mapping[str, Tensor],
        costs: Costs,
        scope: str,
    ) -> None:
        ids = ChannelGroups(graph, heads=find_heads(graph))
        roots = ids.roots()
        pinned = torch.zeros(ids.count, dtype=torch.bool)
        for axis, _ in ids.pinned:
            pinned[roots[axis]] = True
        self._given = {name: mask.clone() for name, mask in masks.items()}
        self._costs = costs
        axes = {
            name: [None if axis is None else roots[axis] for axis in ids.axes[number]]
            for number, name in graph.parameters.items()
            if name in masks or name in costs.others
        }
        members = [
            axis[~pinned[axis]] for name in masks for axis in axes.get(name, []) if axis is not None
        ]
        used = torch.cat(members).unique() if members else torch.zeros(0, dtype=torch.long)
        if not len(used):
            raise ValueError(
                "granularity: no unit of the network can be removed; its shapes are fixed"
                f" ({', '.join(sorted({why for _, why in ids.pinned}))})"
            )
        # The last number stands for what stays.
        number = torch.full((ids.count,), len(used))
        number[used] = torch.arange(len(used))
        self._number = len(used)
        self._axes = {
            name: [None if axis is None else number[axis] for axis in of_one]
            for name, of_one in axes.items()
        }
        self._separate = dict(separate)
        apart = self._sums({name: where.double() for name, where in separate.items()})
        whole = self._sums({name: torch.ones(mask.shape) for name, mask in masks.items()})
        self.flowing = apart < whole
        self.rankings = as_rankings(self.flowing, self._families(masks), scope)
        self._counts = {name: self._count(name, mask) for name, mask in masks.items()}
        self.sizes = self._sums({name: mask.double() for name, mask in masks.items()})
        self.costs = self._sums(
            {name: mask.double() * costs.of_weight[name] for name, mask in masks.items()}
        )
        fixed = [name for name in masks if not self._unit_axes(name)]
        if fixed:
            self.notes = (
                f"stay dense, since no unit of theirs can be removed: {', '.join(fixed)}",
            )

    def sums(self, scores: Mapping[str, Tensor]) -> Tensor:
        counted = {
            name: torch.where(self._given[name], score.double(), 0)
            for name, score in scores.items()
        }
        alone = self._sums(counted)
        for name, where in self._separate.items():
            counted[name] = counted[name].masked_fill(where, 0)
        return torch.where(self.flowing, self._sums(counted), alone)

    def masks(self, active: Tensor) -> dict[str, Tensor]:
        kept = self._with_rest(active)
        masks = {}
        for name, mask in self._given.items():
            mask = mask.clone()
            for dim, axis in enumerate(self._axes.get(name, [])):
                if axis is not None:
                    shape = [-1 if other == dim else 1 for other in range(mask.dim())]
                    mask &= kept[axis].view(shape).to(mask.device)
            masks[name] = mask
        return masks

    def cost(self, active: Tensor) -> float:
        kept = self._with_rest(active).double()
        weights = {name: counts.kept(kept) for name, counts in self._counts.items()}
        others = 0.0
        for name, shape in self._costs.others.items():
            axes = self._axes.get(name) or [None] * len(shape)
            sizes = [
                float(size) if axis is None else float(kept[axis].sum())
                for size, axis in zip(shape, axes, strict=True)
            ]
            others += float(torch.tensor(sizes, dtype=torch.float64).prod())
        return total_cost(self._costs, weights, others)

    def _with_rest(self, active: Tensor) -> Tensor:
        return torch.cat([active.cpu(), torch.ones(1, dtype=torch.bool)])

    def _unit_axes(self, name: str) -> dict[int, Tensor]:
        """Return the numbers of the units along each dimension that has removable ones."""
        return {
            dim: axis
            for dim, axis in enumerate(self._axes.get(name, []))
            if axis is not None and bool((axis < self._number).any())
        }

    def _count(self, name: str, mask: Tensor) -> _Counts:
        """Return the weights of a layer, summed over the dimensions without removable units."""
        axes = self._unit_axes(name)
        rest = [dim for dim in range(mask.dim()) if dim not in axes]
        counts = mask.cpu().double()
        counts = counts.sum(rest) if rest else counts
        value = float(counts.flatten()[0])
        return _Counts(
            tuple(axes.values()), counts, value if bool((counts == value).all()) else None
        )

    def _sums(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the sums of values over the weights of each unit, (groups,) float64."""
        sums = torch.zeros(self._number + 1, dtype=torch.float64)
        for name, value in values.items():
            value = value.cpu()
            axes = list(self._unit_axes(name).items())
            for place, (dim, axis) in enumerate(axes):
                rest = value
                for earlier, other in axes[:place]:  # a weight of a unit counts once
                    same = _spread(other, earlier, value.dim()) == _spread(axis, dim, value.dim())
                    if bool((same & (_spread(axis, dim, value.dim()) < self._number)).any()):
                        rest = rest.masked_fill(same, 0)
                dims = [other for other in range(value.dim()) if other != dim]
                summed = rest.sum(dims, dtype=torch.float64) if dims else rest.double()
                sums.index_add_(0, axis, summed)
        return sums[:-1]

    def _families(self, masks: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the numbers of the units that share a dimension of a weight."""
        joined = []
        for axis in (axis for name in masks for axis in self._unit_axes(name).values()):
            numbers = axis[axis < self._number].unique()
            joined.append((numbers[1:], numbers[:1].expand(len(numbers) - 1)))
        family = representatives(self._number, joined)
        return [(family == first).nonzero().flatten() for first in family.unique()]


def _spread(axis: Tensor, dim: int, dims: int) -> Tensor:
    return axis.view([-1 if other == dim else 1 for other in range(dims)])
