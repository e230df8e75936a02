"""Diagnosis: what pruning did to one network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synflow_pl.flow import Paths, example_of, linearise, record
from synflow_pl.followers import living_units
from synflow_pl.masks import Masks

__all__ = ["DeadNetwork", "Diagnosis", "Layer", "diagnose"]


class DeadNetwork(RuntimeError):
    """No path of living weights leads from input to output."""


@dataclass(frozen=True)
class Layer:
    r"""One prunable parameter: name, shape (out, in, \\*kernel), weights kept, those of them on a path of living weights from input to
    output, and units (output channels) with any weight left.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    effective: int
    units: int
    living_units: int

    @property
    def total(self) -> int:
        """Weights, living and removed."""
        return torch.Size(self.shape).numel()

    @property
    def density(self) -> float:
        """Fraction of weights kept, in [0, 1]; 0 is layer collapse."""
        return self.kept / self.total


@dataclass(frozen=True)
class Diagnosis:
    """What is left of a network: ``kept`` of ``total`` weights, ``effective`` ones among them, which lie on a path of living weights
    from input to output, each layer, and whether it is ``alive``, such a path left at all.

    ``notes`` says in whole sentences what to know about these figures: operations that paths were followed through by guess.
    """

    kept: int
    effective: int
    total: int
    alive: bool
    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()

    @property
    def density(self) -> float:
        """Fraction of prunable weights kept, in (0, 1]."""
        return self.kept / self.total

    @property
    def effective_density(self) -> float:
        """Fraction of prunable weights kept and on a live path, in [0, density]."""
        return self.effective / self.total

    @property
    def collapsed(self) -> list[str]:
        """Names of the layers with no weight left."""
        return [layer.name for layer in self.layers if layer.kept == 0]

    @property
    def collapse(self) -> str | None:
        """What to be warned of, without a full stop: a dead network, or layers with no weight left; ``None`` if there is nothing."""
        if not self.alive:
            where = f" ({self.collapsed[0]!r} has no weight left)" if self.collapsed else ""
            return (
                f"the network is dead: no path of living weights leads from input to output at density {self.density:.6g}{where};"
                " try more rounds, a larger density, scope local"
            )
        return f"layers with no weight left, though a path remains: {', '.join(self.collapsed)}" if self.collapsed else None

    def table(self) -> str:
        """The layers as a table of plain text, one line each, and the whole below."""
        rows: list[tuple[str, ...]] = [("parameter", "shape", "weights", "kept", "effective", "density", "living units")]
        for x in self.layers:
            counts = [f"{count:,}" for count in (x.total, x.kept, x.effective)]
            rows.append((x.name, "x".join(map(str, x.shape)), *counts, f"{x.density:.4f}", f"{x.living_units} / {x.units}"))
        counts = [f"{count:,}" for count in (self.total, self.kept, self.effective)]
        rows.append(("all", "", *counts, f"{self.density:.4f}", "alive" if self.alive else "dead: no path left"))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def diagnose(
    network: nn.Module,
    masks: Masks,
    *,
    input_shape: Sequence[int] | None = None,
    example_input: Tensor | tuple[Tensor, ...] | None = None,
) -> Diagnosis:
    """Say what was really kept.

    Args:
        network: the pruned network.
        masks: its masks.
        input_shape: (C, H, W), for networks with one input.
        example_input: instead of it, a tensor or a tuple of them with the batch dimension.

    Raises:
        ValueError: if the masks are not the network's, or neither input is given.
    """
    masks.parameters(network)
    inputs = example_of(network, input_shape, example_input)
    recording = record(network, inputs)
    skeleton = linearise(network, inputs, recording)
    paths = Paths(network, inputs, recording)
    effective = {name: int(on.count_nonzero()) for name, on in paths.effective(masks).items()}
    units = living_units(network, {name: masks[name] for name in masks.weights})
    layers = tuple(
        Layer(
            name,
            tuple(masks[name].shape),
            int(masks[name].count_nonzero()),
            effective[name],
            living.numel(),
            int(living.count_nonzero()),
        )
        for name, living in units.items()
    )
    return Diagnosis(masks.kept, sum(effective.values()), masks.total, paths.left(masks), layers, skeleton.notes)
