"""Findings: what a diagnosis holds, and how it is read: as a table, as CSV, as JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.console import Group

from synflow_pl.diagnosis.diagnosis_table import drawn, plain
from synflow_pl.diagnosis.files import write_csv, write_json
from synflow_pl.flow.connectivity import DeadNetwork, disconnection_message

__all__ = ["DeadNetwork", "Diagnosis", "Layer"]


@dataclass(frozen=True)
class Layer:
    r"""One prunable parameter.

    Attributes:
        name: of the parameter.
        shape: (out, in, \\*kernel).
        kept: weights that live.
        effective: those of them on a path of living weights from input to output.
        units: output channels; ``living_units`` of them have a living weight.
        living_units: see ``units``.
        inputs: input channels; ``living_inputs`` of them are read by a living weight.
        living_inputs: see ``inputs``.
        flops: of its products in one pass, dense; two for each multiplication and addition.
        sparse_flops: the same, of the weights kept alone.
        score_mean: mean score of the weights kept; by default SynFlow's in the pruned network.
        score_variance: of the same, of the population.
        score_sum: of the same.
        flow: share of the flow from input to output that passes the layer, in [0, 1]: the sum of
            SynFlow's scores in the pruned network over the flow at the output. Each layer of a
            chain has 1, of two branches each its part, and a weight that is used k times along a
            path counts k times.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    effective: int
    units: int
    living_units: int
    inputs: int
    living_inputs: int
    flops: int
    sparse_flops: int
    score_mean: float
    score_variance: float
    score_sum: float
    flow: float

    @property
    def total(self) -> int:
        """Weights, living and removed."""
        return torch.Size(self.shape).numel()

    @property
    def density(self) -> float:
        """Fraction of weights kept, in [0, 1]; 0 is layer collapse."""
        return self.kept / self.total

    @property
    def effective_density(self) -> float:
        """Fraction of weights kept and on a living path, in [0, density]."""
        return self.effective / self.total


@dataclass(frozen=True)
class Diagnosis:
    """What is left of a network.

    Attributes:
        kept: weights that live.
        effective: those of them on a path of living weights from input to output.
        total: prunable weights, living and removed.
        alive: whether such a path is left at all.
        layers: one for each prunable parameter, in the network's order.
        flops: of one pass over the example (of one image, if an input's shape was given), dense:
            products with weights, prunable or not, and attention; two for each multiplication and
            addition.
        sparse_flops: the same, of the weights kept alone; attention counts as dense.
        conservation_error: how far scores are from conserving flow, in [0, inf): the coefficient of
            variation of the layers' sums of scores, over those layers that every path from input to
            output passes once. By Theorem 2 of Tanaka et al. 2020 (network-wise conservation) it is
            zero, but for rounding, for the synaptic saliency of a network that has homogeneous
            functions only; SynFlow's is that of the skeleton. For other scores it is not.
        left_out: by module name ("" for the network itself), how many numbers its parameters
            without a mask hold: they take no part and stay dense.
        inhomogeneous: by module name, what in it breaks the homogeneity that this theorem rests on,
            and is replaced by something linear in the skeleton: a normalisation, a nonlinearity, a
            gate, attention.
        notes: in whole sentences, what to know about these figures.
        broken: in a dead network, the first weight past which no path of living weights from the
            input leads.
        died: the round after which no path was left, counted from 1, and the density then, where
            they are known.
    """

    kept: int
    effective: int
    total: int
    alive: bool
    layers: tuple[Layer, ...]
    flops: int
    sparse_flops: int
    conservation_error: float
    inhomogeneous: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    broken: str | None = None
    died: tuple[int, float] | None = None

    @property
    def density(self) -> float:
        """Fraction of prunable weights kept, in (0, 1]."""
        return self.kept / self.total

    @property
    def effective_density(self) -> float:
        """Fraction of prunable weights kept and on a live path, in [0, density]."""
        return self.effective / self.total

    @property
    def compression(self) -> float:
        """Prunable weights over those kept, 1 / density, at least 1; 10^2 in the papers is density
        0.01. Infinite if none is kept.
        """
        return self.total / self.kept if self.kept else math.inf

    @property
    def collapsed(self) -> list[str]:
        """Names of the layers with no weight left."""
        return [layer.name for layer in self.layers if layer.kept == 0]

    @property
    def collapse(self) -> str | None:
        """What to be warned of, without a full stop: a dead network, or layers with no weight left;
        ``None`` if there is nothing.
        """
        if not self.alive:
            return disconnection_message(self.density, self.broken, self.collapsed, self.died)
        return (
            f"layers with no weight left, though a path remains: {', '.join(self.collapsed)}"
            if self.collapsed
            else None
        )

    # -- how it is read

    def __rich__(self) -> Group:
        """The table as rich draws it: ``rich.print(diagnosis)``."""
        return drawn(self)

    def table(self) -> str:
        """The layers as a table of plain text, one line each, the whole and what is to be said of
        it below: as wide as it has to be, wherever it is printed.
        """
        return plain(self)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line for each layer, with every field. The file appears whole or not at all.

        Raises:
            OSError: if the folder cannot be written.
        """
        write_csv(path, [_row(layer) for layer in self.layers])

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write all there is, of the whole and of the layers. The file appears whole or not at all.

        Raises:
            OSError: if the folder cannot be written.
        """
        whole = {key: value for key, value in asdict(self).items() if key != "layers"}
        whole |= {
            name: getattr(self, name)
            for name in ("density", "effective_density", "compression", "collapsed")
        }
        write_json(
            path,
            {**whole, "layers": [_row(layer) | {"shape": layer.shape} for layer in self.layers]},
        )


def _row(layer: Layer) -> dict[str, Any]:
    counted = {
        "name": layer.name,
        "shape": "x".join(map(str, layer.shape)),
        "total": layer.total,
        "density": layer.density,
    }
    return (
        counted
        | {"effective_density": layer.effective_density}
        | {k: v for k, v in asdict(layer).items() if k not in counted}
    )
