"""Random walks along the weights of a network, from input to output or backwards.

A step of a walk takes one of the weights that read a unit, with a probability proportional to its
magnitude. Many walks take a step at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from synflow_pl.pruners.layer_graph import LayerGraph

__all__ = ["WeightGraph", "WeightedChoice"]

# Walks are drawn in batches of at most this many.
_WAVE = 1 << 14
# Drawing stops after a batch in which less than this fraction of the edges passed are new; further
# new edges are then too unlikely.
_STALLED = 0.01


class WeightGraph:
    """Graph of all weights of all layers, in which many walks can take a step at once.

    An edge is a weight, numbered through all layers. A port is an input of a layer and a unit is an
    output of a layer, each numbered through all layers.

    Args:
        layer_graph: Graph of the layers.
        magnitudes: Magnitudes of the weights, by name; zero for weights that walks cannot take.
        counted: Names of the parameters that are pruned.
    """

    def __init__(
        self, layer_graph: LayerGraph, magnitudes: dict[str, Tensor], counted: list[str]
    ) -> None:
        self._magnitudes = magnitudes
        self._largest = max(float(tensor.max()) for tensor in magnitudes.values())
        edges = units = ports = 0
        unit_of, port_of, first_unit, first_port = [], [], {}, {}
        for name, tensor in magnitudes.items():
            groups, (out, per_group), kernel = (
                layer_graph.groups[name],
                tensor.shape[:2],
                tensor[0, 0].numel(),
            )
            unit = torch.arange(out)
            port = (unit // (out // groups))[:, None] * per_group + torch.arange(per_group)
            unit_of.append((units + unit).repeat_interleave(per_group * kernel))
            port_of.append((ports + port).flatten().repeat_interleave(kernel))
            first_unit[name], first_port[name] = units, ports
            edges, units, ports = edges + tensor.numel(), units + out, ports + per_group * groups
        self._unit_of, self._port_of = torch.cat(unit_of), torch.cat(port_of)
        self.counted = torch.cat(
            [torch.full((tensor.numel(),), name in counted) for name, tensor in magnitudes.items()]
        )
        row = self._row = torch.cat([tensor.flatten() for tensor in magnitudes.values()])
        self._names = counted
        every = torch.arange(edges)
        # The weights that read a port, and the weights into a unit.
        self._onward = WeightedChoice(self._port_of, every, row, ports)
        self._backward = WeightedChoice(self._unit_of, every, row, units)
        source, reader = [], []
        for (name, feeding), unit in layer_graph.feeds.items():
            reads = (unit >= 0).nonzero().squeeze(1).cpu()
            source.append(first_unit[feeding] + unit.cpu()[reads])
            reader.append(first_port[name] + reads)
        pairs = (
            (torch.cat(source), torch.cat(reader))
            if source
            else (torch.zeros(0, dtype=torch.long),) * 2
        )
        self._sources, self._readers = pairs
        # The ports that read a unit, and the units that a port reads.
        self._ports = WeightedChoice(pairs[0], pairs[1], self._onward.totals[pairs[1]], units)
        self._units = WeightedChoice(pairs[1], pairs[0], self._backward.totals[pairs[0]], ports)
        self._entry, self._exit = (
            torch.zeros(ports, dtype=torch.bool),
            torch.zeros(units, dtype=torch.bool),
        )
        for name in magnitudes:
            self._entry[first_port[name] + layer_graph.entries[name].cpu().nonzero()] = True
            self._exit[first_unit[name] + layer_graph.exits[name].cpu().nonzero()] = True
        self._starts, self._goals = (
            self._entry.nonzero().squeeze(1),
            self._exit.nonzero().squeeze(1),
        )
        self._taken = 0

    def walk(self, chosen: Tensor, kept: int, generator: torch.Generator) -> Tensor:
        """Return ``chosen`` with as many more walks as fit into ``kept`` weights.

        If not even the first walk fits, its first weights are added.

        Args:
            chosen: Mask (edges,) of the weights on earlier walks.
            kept: Number of weights that may be chosen.
            generator: Source of random numbers.

        Returns:
            Mask (edges,) of the weights on all walks.
        """
        chosen = chosen.clone()
        count = int(chosen.sum())
        while (room := kept - count) > 0:
            wave = min(_WAVE, 2 * room)
            turn = self._taken + torch.arange(wave // 2)
            self._taken += wave // 2
            forward = self._walks(self._starts[turn % len(self._starts)], generator, forward=True)
            backward = self._walks(self._goals[turn % len(self._goals)], generator, forward=False)
            length = max(forward.shape[1], backward.shape[1])
            # Forward and backward walks alternate.
            walks = torch.stack([_padded(forward, length), _padded(backward, length)], 1)
            walks = walks.flatten(0, 1)
            new, first = _first_positions(walks, self.counted & ~chosen)
            total = torch.bincount(first // length, minlength=wave).cumsum(0)
            fitting = int((total <= room).sum())
            chosen[new[first // length < fitting]] = True
            num_new = int(total[fitting - 1]) if fitting else 0
            count += num_new
            if count == 0 and fitting < wave:
                chosen[new[first.argsort()][:kept]] = True
            if fitting < wave or num_new <= _STALLED * int((walks >= 0).sum()):
                break
        return chosen

    def _walks(self, at: Tensor, generator: torch.Generator, *, forward: bool) -> Tensor:
        """Return walks as edges (walks, steps), -1 after their end.

        A walk that stops before its goal is -1 throughout.

        Args:
            at: Port (or unit, for backward walks) where each walk starts.
            generator: Source of random numbers.
            forward: Whether the walks go from input to output.
        """
        steps, walking = [], torch.arange(len(at))
        lost = torch.zeros(len(at), dtype=torch.bool)
        first, then = (self._onward, self._ports) if forward else (self._backward, self._units)
        leads_to, arrived = (self._unit_of, self._exit) if forward else (self._port_of, self._entry)
        while len(walking):
            edge = first.draw(at, generator)
            lost[walking[edge < 0]] = True
            walking, edge = walking[edge >= 0], edge[edge >= 0]
            step = torch.full((len(lost),), -1)
            step[walking] = edge
            steps.append(step)
            reached = leads_to[edge]
            at = then.draw(reached, generator)
            lost[walking[(at < 0) & ~arrived[reached]]] = True
            walking, at = walking[at >= 0], at[at >= 0]
        walks = torch.stack(steps, 1)
        walks[lost] = -1
        return walks

    def ranks(self, chosen: Tensor, barred: Tensor) -> Tensor:
        """Return the scores (edges,) of all weights.

        The score is 3 for weights on walks; in [1, 2], by magnitude, for weights between units that
        walks have passed and that are not barred; in [0, 1/2] for all others; -1 for weights that
        are not pruned.

        Args:
            chosen: Mask (edges,) of the weights on walks.
            barred: Mask (edges,) of weights that lie on no path.
        """
        units = self._exit.clone()
        units[self._unit_of[chosen]] = True
        ports = self._entry.clone()
        ports[self._readers[units[self._sources]]] = True
        between = units[self._unit_of] & ports[self._port_of] & (self._row > 0) & ~barred
        relative = self._row / self._largest
        rank = torch.where(chosen, 3.0, torch.where(between, 1 + relative, relative / 2))
        return rank.masked_fill_(~self.counted, -1)

    def all(self, row: Tensor) -> list[tuple[str, Tensor]]:
        """Split values (edges,) by layer; return pairs (name, tensor in the weight's shape)."""
        parts = row.split([tensor.numel() for tensor in self._magnitudes.values()])
        return [
            (name, part.view_as(self._magnitudes[name]))
            for name, part in zip(self._magnitudes, parts, strict=True)
        ]

    def parts(self, row: Tensor) -> dict[str, Tensor]:
        """Split values (edges,) into one tensor per layer that is pruned, by name."""
        return {name: part for name, part in self.all(row) if name in self._names}


class WeightedChoice:
    """Random choice between the options of a place, with probabilities proportional to weights.

    Args:
        places: Place (n,) of each option, int64.
        options: Options (n,), int64.
        weights: Non-negative weights (n,).
        count: Number of places.
    """

    def __init__(self, places: Tensor, options: Tensor, weights: Tensor, count: int) -> None:
        if not bool((places.diff() >= 0).all()):
            order = places.argsort(stable=True)
            options, weights = options[order], weights[order]
        self._options = options
        self._sums = torch.cat([weights.new_zeros(1), weights.cumsum(0)])
        self._ends = torch.bincount(places, minlength=count).cumsum(0)
        self._starts = torch.cat([self._ends.new_zeros(1), self._ends[:-1]])
        self.totals = self._sums[self._ends] - self._sums[self._starts]

    def draw(self, places: Tensor, generator: torch.Generator) -> Tensor:
        """Return one option (k,) per place; -1 where a place has no option with a positive weight.

        Args:
            places: Places (k,).
            generator: Source of random numbers.
        """
        start, end = self._starts[places], self._ends[places]
        target = (
            self._sums[start]
            + torch.rand(len(places), dtype=self._sums.dtype, generator=generator)
            * self.totals[places]
        )
        drawn = torch.full_like(places, -1)
        some = self.totals[places] > 0
        # Rounding errors may give an index one past the end.
        indices = torch.minimum(
            torch.searchsorted(self._sums[1:], target[some], right=True), end[some] - 1
        )
        drawn[some] = self._options[indices]
        return drawn


def _padded(walks: Tensor, length: int) -> Tensor:
    """Pad walks (walks, steps) with -1 to a number of steps."""
    return torch.nn.functional.pad(walks, (0, length - walks.shape[1]), value=-1)


def _first_positions(walks: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the wanted edges on the walks, and the position of the first occurrence of each.

    Args:
        walks: Edges (walks, steps), -1 after the end of a walk.
        wanted: Mask (edges,) of the wanted edges.

    Returns:
        Edges (k,), and their first positions (k,) in the flattened walks.
    """
    flat = walks.flatten()
    where = ((flat >= 0) & wanted[flat.clamp(min=0)]).nonzero().squeeze(1)
    edges, which = flat[where].unique(return_inverse=True)
    first = torch.full((len(edges),), flat.numel()).scatter_reduce(0, which, where, "amin")
    return edges, first
