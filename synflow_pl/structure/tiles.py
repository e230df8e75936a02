"""Tiles: disjoint groups of weights of one layer (kernels, blocks, single weights of N:M)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from synflow_pl.granularity import Granularity
from synflow_pl.structure.costs import Costs
from synflow_pl.structure.groups import Groups, as_rankings, total_cost
from synflow_pl.structure.matrices import MatrixView

__all__ = ["Tiles"]


class Tiles(Groups):
    """Tiles of the matrices of all layers.

    Args:
        granularity: Kernels, blocks, N:M or single weights.
        views: Views of the weights as matrices, by name.
        masks: Masks of an earlier pruning, or of the dense network, by name.
        separate: Bool tensors in the weights' shapes, by name, True for weights that are ranked by
            themselves; a tile with any of them is.
        costs: Costs of the weights.
        scope: ``"global"`` or ``"local"``.
    """

    def __init__(
        self,
        granularity: Granularity,
        views: Mapping[str, MatrixView],
        masks: Mapping[str, Tensor],
        separate: Mapping[str, Tensor],
        costs: Costs,
        scope: str,
    ) -> None:
        self.pattern = granularity.sizes if granularity.kind == "n:m" else None
        self._tile = granularity.sizes if granularity.kind == "block" else (1, 1)
        self._whole_kernels = granularity.kind in ("kernel", "block")
        undivided = tuple(
            name
            for name, view in views.items()
            if self.pattern and not granularity.padded and view.size[2] % self.pattern[1]
        )
        if self.pattern and undivided:
            divisor = self.pattern[1]
            self.notes = (
                f"stay dense, since their inputs do not divide by {divisor}:"
                f" {', '.join(f'{name} ({views[name].size[2]})' for name in undivided)}",
            )
        self._views = {name: view for name, view in views.items() if name not in undivided}
        self._given = {name: mask.clone() for name, mask in masks.items()}
        self._first: dict[str, int] = {}
        sizes: list[Tensor] = []
        families: list[Tensor] = []
        flowing: list[Tensor] = []
        count = 0
        for name in self._views:
            self._first[name] = count
            size = self._sum(name, self._given[name].to(torch.float64)).flatten()
            sizes.append(size)
            apart = separate.get(name)
            flowing.append(
                self._sum(name, apart.to(torch.float64)).flatten() == 0
                if apart is not None
                else torch.ones_like(size, dtype=torch.bool)
            )
            families.append(torch.arange(count, count + len(size), device=size.device))
            count += len(size)
        if not sizes:
            raise ValueError(
                f"granularity: no layer can be pruned to N:M ({'; '.join(self.notes)});"
                " choose another M, or N:M-padded"
            )
        self.sizes = torch.cat(sizes)
        self.flowing = torch.cat(flowing)
        self.rankings = as_rankings(self.flowing, families, scope)
        rates = [
            torch.full_like(size, costs.of_weight[name])
            for name, size in zip(self._views, sizes, strict=True)
        ]
        self.costs = self.sizes * torch.cat(rates)
        fixed = {
            name: float(mask.count_nonzero())
            for name, mask in masks.items()
            if name not in self._views
        }
        others = float(sum(torch.Size(shape).numel() for shape in costs.others.values()))
        self._fixed_cost = total_cost(costs, fixed, others)

    def sums(self, scores: Mapping[str, Tensor]) -> Tensor:
        return torch.cat(
            [
                self._sum(name, torch.where(self._given[name], scores[name].double(), 0)).flatten()
                for name in self._views
            ]
        )

    def masks(self, active: Tensor) -> dict[str, Tensor]:
        masks = {}
        for name, view in self._views.items():
            stack, outputs, inputs, positions = view.size
            shape = self._tiles(view)
            first = self._first[name]
            tiles = active[first : first + torch.Size(shape).numel()].view(shape)
            high, wide = self._tile
            spread = tiles.repeat_interleave(high, 1).repeat_interleave(wide, 2)
            spread = spread[:, :outputs, :inputs].expand(stack, outputs, inputs, positions)
            masks[name] = view.from_view(spread) & self._given[name]
        return masks

    def cost(self, active: Tensor) -> float:
        return self._fixed_cost + float(self.costs[active].sum())

    def pattern_cost(self) -> float:
        """Return the cost with N of every M weights kept, or all where fewer are."""
        assert self.pattern is not None
        active = self.initially_active
        return self.cost(active & ~self.removable(active.double(), active))

    def number_within(self, order: Tensor, active: Tensor, budget: float) -> int:
        left = self.cost(active) - self.costs[order].cumsum(0)
        within = (left <= budget).nonzero()
        if self.cost(active) <= budget:
            return 0
        return int(within[0]) + 1 if len(within) else len(order)

    def removable(self, scores: Tensor, active: Tensor) -> Tensor:
        """With N:M, in each group of M all but the N largest scores may be removed."""
        if self.pattern is None:
            return active
        keep, size = self.pattern
        parts = []
        for name, view in self._views.items():
            inputs = view.size[2]
            first, shape = self._first[name], self._tiles(view)
            count = torch.Size(shape).numel()
            of_layer = torch.where(active, scores, -torch.inf)[first : first + count].view(shape)
            lacking = -inputs % size
            grouped = pad(of_layer.transpose(2, 3), (0, lacking), value=-torch.inf).unflatten(
                3, (-1, size)
            )
            # A stable sort of the reversed group keeps the first of equal scores.
            place = grouped.sort(dim=4, descending=True, stable=True).indices.argsort(4)
            may_go = (place >= keep).flatten(3)[..., :inputs].transpose(2, 3)
            parts.append(may_go.flatten())
        return torch.cat(parts) & active

    def _tiles(self, view: MatrixView) -> tuple[int, int, int, int]:
        """Return the numbers of tiles along the dimensions of a view."""
        stack, outputs, inputs, positions = view.size
        high, wide = self._tile
        return (
            stack,
            -(-outputs // high),
            -(-inputs // wide),
            1 if self._whole_kernels else positions,
        )

    def _sum(self, name: str, values: Tensor) -> Tensor:
        """Return the sums of values over the tiles of a weight."""
        view = self._views[name].to_view(values)
        if self._whole_kernels:
            view = view.sum(3, keepdim=True)
        high, wide = self._tile
        _, outputs, inputs, _ = view.shape
        view = pad(view, (0, 0, 0, -inputs % wide, 0, -outputs % high))
        return view.unflatten(2, (-1, wide)).sum(3).unflatten(1, (-1, high)).sum(2)
