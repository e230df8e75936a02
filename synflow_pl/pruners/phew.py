"""PHEW: paths with higher edge weights (Patil & Dovrolis 2021, "PHEW: constructing sparse networks
that learn fast and generalize well without any training data").

The network kept is a union of random walks from input to output. From a unit, a walk takes one of
the weights that lead on with a probability in proportion to its magnitude,

    P(i -> j) = |w_ij| / sum over k of |w_ik|,

so that paths of large weights are likely, and unlike with a ranking by them, not all go through the
same few units. Walks start in turn from each input channel and, backwards, from each output unit.
In a convolution a unit is a channel and a step one entry of a kernel. Where shortcuts meet, what
leads on (or back) is every weight that reads (or made) the same value.

Density is exact: walks are added while they fit. What is left over is filled with the largest
weights between units that walks have passed. Each weight kept lies on a path, not from channel to
channel alone but at the network's input size, where an entry of a kernel may see nothing but
padding: what does not is given back, and more walks are taken in its place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from synflow_pl.flow import linearise, magnitude
from synflow_pl.masks import prunable
from synflow_pl.order_statistics import smallest
from synflow_pl.pruners.base import Pruner, PruningState
from synflow_pl.pruners.layer_graph import LayerGraph, layer_graph

__all__ = ["PHEW"]

# Walks are taken in waves of at most this many.
_WAVE = 1 << 14
# They end when a wave finds fewer new weights than this share of those that it passes: what is
# still wanted is then too unlikely.
_STALLED = 0.01
# How often walks are taken in place of those that led nowhere, with nothing gained, before the last
# of them are left as they are.
_TRIES = 20


class PHEW(Pruner):
    """Keeps what random walks along large weights pass; needs no data, only the input's shape.

    Args:
        seed: of the walks; ``None`` follows the global seed without drawing from it.
    """

    needs_input = True

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def prepare(self, subject: PruningState) -> None:
        super().prepare(subject)
        assert subject.inputs is not None
        layers = prunable(subject.network)
        self._skeleton = skeleton = linearise(subject.network, subject.inputs)
        self._wiring = layer_graph(
            skeleton, {name: parameter.detach() for name, parameter in layers.items()}
        )
        ones = {
            name: torch.ones_like(parameter, dtype=torch.float64)
            for name, parameter in layers.items()
        }
        self._usable = {
            name: gradient > 0 for name, gradient in skeleton.gradients(ones, gains=False).items()
        }
        if subject.scope == "local":
            self.notes = (
                "each layer is cut alone, so not all that is kept need lie on a path; with scope global it does",
            )
        if idle := [
            name for name, usable in self._usable.items() if not usable.flatten(1).any(1).all()
        ]:
            raise ValueError(
                f"PHEW cannot walk to the output from every unit of {', '.join(idle)}; exclude them, or choose SynFlow"
            )

    def score(self, subject: PruningState) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(
            torch.initial_seed() if self.seed is None else self.seed
        )
        magnitudes = {}
        for name, parameter in prunable(subject.network).items():
            living = (
                self._usable[name] & subject.masks[name]
                if name in subject.masks
                else self._usable[name]
            )
            magnitudes[name] = (magnitude(parameter) * living).double().cpu()
            if not bool(magnitudes[name].isfinite().all()):
                raise FloatingPointError(
                    f"the weights of {name!r} are not finite, so no walk can choose by them; look for what made them so"
                )
        graph = _Graph(self._wiring, magnitudes, list(subject.weights))
        kept, tries = subject.kept, 0
        chosen = torch.zeros_like(graph.counted)
        barred = torch.zeros_like(graph.counted)
        while tries < _TRIES:
            before = int(chosen.sum())
            chosen = graph.walk(chosen, kept, generator)
            ranks = graph.ranks(chosen, barred)
            keep = torch.ones_like(chosen).index_fill_(0, smallest(ranks, len(ranks) - kept), False)
            alive = keep & self._on_a_path(graph, subject, keep)
            if int(alive.sum()) == kept:
                break
            barred |= keep & ~alive
            tries = tries + 1 if int(alive.sum()) <= before else 0
            chosen = alive
        return {name: rank.to(subject.weights[name]) for name, rank in graph.parts(ranks).items()}

    def _on_a_path(self, graph: _Graph, subject: PruningState, keep: Tensor) -> Tensor:
        """Of the weights kept, those that lie on a path of weights kept."""
        masks = {
            name: part.to(subject.weights[name].device, torch.float64)
            for name, part in graph.parts(keep).items()
        }
        carried = self._skeleton.gradients(masks, gains=False)
        return torch.cat(
            [
                (carried[name] > 0).flatten().cpu() if name in carried else part.flatten()
                for name, part in graph.all(keep)
            ]
        )


class _Graph:
    """All weights of all layers in one row, so that many walks can take a step at once.

    An edge is a weight, by its number in the row. A port is an input of a layer, a unit one of its
    outputs, each numbered through all layers.
    """

    def __init__(
        self, wires: LayerGraph, magnitudes: dict[str, Tensor], counted: list[str]
    ) -> None:
        self._magnitudes = magnitudes
        self._largest = max(float(tensor.max()) for tensor in magnitudes.values())
        edges = units = ports = 0
        unit_of, port_of, first_unit, first_port = [], [], {}, {}
        for name, tensor in magnitudes.items():
            groups, (out, per_group), kernel = (
                wires.groups[name],
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
        self._onward = _Choice(
            self._port_of, every, row, ports
        )  # from a port, the weights that read it
        self._backward = _Choice(
            self._unit_of, every, row, units
        )  # from a unit, the weights into it
        source, reader = [], []
        for (name, feeding), unit in wires.feeds.items():
            reads = (unit >= 0).nonzero().squeeze(1).cpu()
            source.append(first_unit[feeding] + unit.cpu()[reads])
            reader.append(first_port[name] + reads)
        pairs = (
            (torch.cat(source), torch.cat(reader))
            if source
            else (torch.zeros(0, dtype=torch.long),) * 2
        )
        self._sources, self._readers = pairs
        self._ports = _Choice(
            pairs[0], pairs[1], self._onward.totals[pairs[1]], units
        )  # from a unit, the ports that read it
        self._units = _Choice(
            pairs[1], pairs[0], self._backward.totals[pairs[0]], ports
        )  # from a port, the units that it reads
        self._entry, self._exit = (
            torch.zeros(ports, dtype=torch.bool),
            torch.zeros(units, dtype=torch.bool),
        )
        for name in magnitudes:
            self._entry[first_port[name] + wires.entries[name].cpu().nonzero()] = True
            self._exit[first_unit[name] + wires.exits[name].cpu().nonzero()] = True
        self._starts, self._goals = (
            self._entry.nonzero().squeeze(1),
            self._exit.nonzero().squeeze(1),
        )
        self._taken = 0

    def walk(self, chosen: Tensor, kept: int, generator: torch.Generator) -> Tensor:
        """(edges,) bool: ``chosen`` and as many more walks as fit into ``kept`` weights; of the
        very first, as much as fits.
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
            walks = torch.stack([_widened(forward, length), _widened(backward, length)], 1).flatten(
                0, 1
            )  # one of each in turn
            new, first = _first_met(walks, self.counted & ~chosen)
            total = torch.bincount(first // length, minlength=wave).cumsum(0)
            fitting = int((total <= room).sum())
            chosen[new[first // length < fitting]] = True
            found = int(total[fitting - 1]) if fitting else 0
            count += found
            if count == 0 and fitting < wave:
                chosen[new[first.argsort()][:kept]] = True
            if fitting < wave or found <= _STALLED * int((walks >= 0).sum()):
                break
        return chosen

    def _walks(self, at: Tensor, generator: torch.Generator, *, forward: bool) -> Tensor:
        """(walks, steps) edges, -1 after the end; a walk that cannot go on before it has arrived is
        -1 throughout.
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
        """(edges,) scores: 3 for what walks passed; in [1, 2] by magnitude for what lies between
        units that they passed and is not barred; in [0, 1/2] the rest; -1 for what does not
        compete.
        """
        live = self._exit.clone()
        live[self._unit_of[chosen]] = True
        reads = self._entry.clone()
        reads[self._readers[live[self._sources]]] = True
        between = live[self._unit_of] & reads[self._port_of] & (self._row > 0) & ~barred
        relative = self._row / self._largest
        rank = torch.where(chosen, 3.0, torch.where(between, 1 + relative, relative / 2))
        return rank.masked_fill_(~self.counted, -1)

    def all(self, row: Tensor) -> list[tuple[str, Tensor]]:
        """What belongs to each layer of one number per edge."""
        parts = row.split([tensor.numel() for tensor in self._magnitudes.values()])
        return [
            (name, part.view_as(self._magnitudes[name]))
            for name, part in zip(self._magnitudes, parts, strict=True)
        ]

    def parts(self, row: Tensor) -> dict[str, Tensor]:
        """The same, of the layers that compete, by name."""
        return {name: part for name, part in self.all(row) if name in self._names}


class _Choice:
    """From each of some places, a random one of several options, in proportion to their weights.

    Args:
        places: (n,) int64, the place of each option.
        options: (n,) int64.
        weights: (n,) non-negative.
        count: how many places there are.
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
        """(k,) options, one for each place; -1 where a place has none."""
        start, end = self._starts[places], self._ends[places]
        target = (
            self._sums[start]
            + torch.rand(len(places), dtype=self._sums.dtype, generator=generator)
            * self.totals[places]
        )
        drawn = torch.full_like(places, -1)
        some = self.totals[places] > 0
        # Rounding may point one past the end.
        found = torch.minimum(
            torch.searchsorted(self._sums[1:], target[some], right=True), end[some] - 1
        )
        drawn[some] = self._options[found]
        return drawn


def _widened(walks: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(walks, (0, length - walks.shape[1]), value=-1)


def _first_met(walks: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The wanted edges among those of all walks, and where each was met first, walk by walk."""
    flat = walks.flatten()
    where = ((flat >= 0) & wanted[flat.clamp(min=0)]).nonzero().squeeze(1)
    edges, which = flat[where].unique(return_inverse=True)
    first = torch.full((len(edges),), flat.numel()).scatter_reduce(0, which, where, "amin")
    return edges, first
