"""Which slices of the parameters the smaller network keeps, and why.

The decision is made backwards from the output. A row of a weight that is kept keeps every column
that it needs, and with a column its whole group of slices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synflow_pl.compaction.channel_groups import OUTPUT, ChannelGroups
from synflow_pl.compaction.channel_usage import ChannelUsage
from synflow_pl.masks import Masks

__all__ = ["KeptSlices"]


class KeptSlices:
    """The slices on which the output depends, and those that must stay for another reason.

    Args:
        groups: Groups of slices that can only be removed together.
        usages: Which columns of each contraction its rows need, in the order of the graph.
    """

    def __init__(self, groups: ChannelGroups, usages: Sequence[ChannelUsage]) -> None:
        self._groups, self._usages = groups, usages
        self._roots = groups.roots()
        self._kept = self._find()

    def _find(self, needed_only: bool = False) -> Tensor:
        """Return which ids are kept, (num_ids,) bool.

        These are the ids on which the output depends and, unless ``needed_only``, the ids that are
        pinned for another reason.
        """
        kept = torch.zeros(self._groups.count, dtype=torch.bool)
        for ids, why in self._groups.pinned:
            if not needed_only or why == OUTPUT:
                kept[self._roots[ids]] = True
        before = -1
        while before != (before := int(kept.sum())):
            for usage in reversed(self._usages):
                kept[self._needed_columns(usage, usage.needed, kept)] = True
        return kept

    def _needed_columns(self, usage: ChannelUsage, needed: Tensor, kept: Tensor) -> Tensor:
        """Return the representatives of the columns that a kept row needs.

        Args:
            usage: Use of the columns by the rows.
            needed: (rows, columns) bool, whether the row needs the column.
            kept: (num_ids,) bool, which ids are kept.
        """
        rows = self._roots[usage.contraction.rows]
        columns = self._roots[usage.contraction.columns]
        return columns[needed[kept[rows]].any(0)]

    def indices(self) -> dict[str, list[Tensor]]:
        """Return the indices kept along each dimension, by parameter name."""
        kept = self._kept.clone()
        recording = self._groups.recording
        axes = {name: self._groups.axes[number] for number, name in recording.parameters.items()}
        for axis in (axis for of_one in axes.values() for axis in of_one):
            # A layer cannot have zero units, so one is kept even if nothing reads it.
            if axis is not None and len(axis) and not kept[self._roots[axis]].any():
                kept[self._roots[axis[0]]] = True
        return {
            name: [
                kept[self._roots[axis]].nonzero().flatten() for axis in of_one if axis is not None
            ]
            for name, of_one in axes.items()
        }

    def number(self, axis: Tensor) -> int:
        """Return how many entries of an axis are kept, at least 1."""
        return max(1, int(self._kept[self._roots[axis]].sum()))

    def removed_columns(self, usage: ChannelUsage) -> Tensor:
        """Return which columns of a contraction are not kept, (columns,) bool."""
        return ~self._kept[self._roots[usage.contraction.columns]]

    def notes(self, network: nn.Module, masks: Masks) -> tuple[str, ...]:
        """Return the reasons why units were not removed, each a sentence without a full stop.

        Args:
            network: The pruned network.
            masks: Masks of the network.
        """
        of_layers = [self._roots[ids] for ids in self._unit_ids(network, masks)]
        units = torch.cat(of_layers) if of_layers else torch.zeros(0, dtype=torch.long)
        needed = self._find(needed_only=True)
        notes = []
        for why in dict.fromkeys(why for _, why in self._groups.pinned):
            pinned = torch.zeros_like(needed)
            for ids, reason in self._groups.pinned:
                if reason == why:
                    pinned[self._roots[ids]] = True
            if count := int((pinned & ~needed)[units].sum()):
                notes.append(f"{count:,} units whether they are needed or not ({why})")
        unfolded = torch.zeros_like(needed)
        for usage in self._usages:
            constant = usage.needed & usage.constant
            unfolded[self._needed_columns(usage, constant, self._kept)] = True
        if count := int(unfolded[units].sum()):
            notes.append(
                f"{count:,} units that hold a constant which cannot be folded (padding makes it"
                " differ from place to place)"
            )
        return (*notes, *sorted(self._groups.notes))

    def _unit_ids(self, network: nn.Module, masks: Masks) -> list[Tensor]:
        """Return the ids of each layer's units."""
        modules = dict(network.named_modules())
        numbers = {name: number for number, name in self._groups.recording.parameters.items()}
        unit_ids = []
        for name in masks.weights:
            transposed = isinstance(
                modules.get(name.removesuffix(".weight")), nn.modules.conv._ConvTransposeNd
            )
            axis = self._groups.axes[numbers[name]][int(transposed)] if name in numbers else None
            unit_ids += [axis] if axis is not None else []
        return unit_ids
