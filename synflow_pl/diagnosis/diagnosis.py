"""The diagnosis of a pruned network: its numbers, as a table, CSV and JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from synflow_pl.diagnosis.files import write_csv, write_json
from synflow_pl.diagnosis.text_table import (
    format_count,
    format_fraction,
    new_table,
    render_plain,
)
from synflow_pl.flow.connectivity import DeadNetwork, disconnection_message

__all__ = ["DeadNetwork", "Diagnosis", "Layer"]


@dataclass(frozen=True)
class Layer:
    r"""Effects of pruning on one prunable parameter.

    Attributes:
        name: Name of the parameter.
        shape: Shape of the parameter, (out, in, \*kernel).
        kept: Number of weights kept.
        effective: Number of kept weights that are on a path of kept weights from input to output.
        units: Number of output channels.
        living_units: Number of output channels with at least one kept weight.
        inputs: Number of input channels.
        living_inputs: Number of input channels that at least one kept weight reads.
        flops: FLOPs of the products with the parameter in one forward pass, if no weight were
            pruned; a multiplication and an addition count as two.
        sparse_flops: FLOPs of the products with the kept weights in one forward pass.
        score_mean: Mean score of the kept weights; by default SynFlow's in the pruned network.
        score_variance: Population variance of the scores of the kept weights.
        score_sum: Sum of the scores of the kept weights.
        flow: Share of the flow from input to output that passes through the layer: the sum of
            SynFlow's scores in the pruned network over the flow at the output. It is 1 for each
            layer of a chain, and two parallel branches share it. A weight that is used k times
            along a path counts k times.
        spectral_gap: Difference of the two largest singular values of the mask as a matrix, if
            spectra were asked for (see :mod:`synflow_pl.diagnosis.expansion`).
        ramanujan: Bound on the second singular value of a Ramanujan graph of the same mean degrees
            minus that of the mask (Hoang et al. 2023), if spectra were asked for; NaN if a mean
            degree is less than 3.
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
    spectral_gap: float | None = None
    ramanujan: float | None = None

    @property
    def total(self) -> int:
        """Number of weights, kept and pruned."""
        return torch.Size(self.shape).numel()

    @property
    def density(self) -> float:
        """Fraction of weights kept, in [0, 1]; 0 is layer collapse."""
        return self.kept / self.total

    @property
    def effective_density(self) -> float:
        """Fraction of weights on a path of kept weights, in [0, density]."""
        return self.effective / self.total


@dataclass(frozen=True)
class Diagnosis:
    """Effects of pruning on a network; the result of :func:`synflow_pl.diagnose`.

    Attributes:
        kept: Number of weights kept.
        effective: Number of kept weights that are on a path of kept weights from input to output.
        total: Number of prunable weights, kept and pruned.
        alive: Whether a path of kept weights connects the input to the output.
        layers: One :class:`Layer` for each prunable parameter, in the network's order.
        flops: FLOPs of one forward pass of the example (of one image, if the diagnosis was given
            an input shape) if no weight were pruned: products with weights, prunable or not, and
            attention. A multiplication and an addition count as two.
        sparse_flops: FLOPs of the same pass with the kept weights alone; attention counts as
            dense.
        conservation_error: Deviation of the scores from conservation of flow, in [0, inf): the
            coefficient of variation of the layers' sums of scores, over the layers that every
            path from input to output passes exactly once. By Theorem 2 of Tanaka et al. 2020
            (network-wise conservation) it is zero up to rounding for the synaptic saliency of a
            network of homogeneous functions. SynFlow's scores are the synaptic saliency of the
            linear network. For other scores the error is not zero.
        inhomogeneous: Kinds of operations that violate the homogeneity which this theorem assumes,
            by module name: a normalisation, a nonlinearity, a gate or attention. The linear
            network replaces them by linear operations.
        left_out: Number of entries of a module's parameters that have no mask and stay dense, by
            module name ("" for the network itself).
        notes: Remarks about these numbers, each a whole sentence without a full stop.
        broken: Name of the first weight past which no path of kept weights leads, if the network
            is disconnected.
        died: The first round, counted from 1, after which the network was disconnected, and the
            density after it, if they are known.

    Example:
        >>> import torch
        >>> from synflow_pl import Masks, diagnose
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Linear(2, 2))
        >>> masks = Masks({"0.weight": torch.eye(2, 4).bool(), "1.weight": torch.eye(2).bool()})
        >>> masks.apply(network)
        >>> diagnosis = diagnose(network, masks, input_shape=(4,))
        >>> diagnosis.kept, diagnosis.effective, diagnosis.total
        (4, 4, 12)
        >>> [layer.density for layer in diagnosis.layers]
        [0.25, 0.5]
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
        """Fraction of prunable weights on a path of kept weights, in [0, density]."""
        return self.effective / self.total

    @property
    def compression(self) -> float:
        """Compression, 1 / density, at least 1; infinite if no weight is kept.

        The compression 10^2 of the papers is density 0.01.
        """
        return self.total / self.kept if self.kept else math.inf

    @property
    def collapsed(self) -> list[str]:
        """Names of the layers with no weight kept."""
        return [layer.name for layer in self.layers if layer.kept == 0]

    @property
    def collapse(self) -> str | None:
        """Warning about a disconnected network or collapsed layers, ``None`` if there are none.

        The warning has no full stop.
        """
        if not self.alive:
            return disconnection_message(self.density, self.broken, self.collapsed, self.died)
        return (
            f"layers with no weight left, though a path remains: {', '.join(self.collapsed)}"
            if self.collapsed
            else None
        )

    def __rich__(self) -> Group:
        """Return what ``rich.print(diagnosis)`` prints: the layers, totals and remarks."""
        return Group(self._layer_table(), "", *(Text(line) for line in self._remarks()))

    def table(self) -> str:
        """Return the layers, totals and remarks as plain text without a limit on its width.

        Each layer is one line.
        """
        return render_plain(self)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line for each layer, with every field, to a CSV file in one atomic step.

        Args:
            path: Path of the file.

        Raises:
            OSError: If the folder cannot be written.
        """
        write_csv(path, [_row(layer) for layer in self.layers])

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write every number about the network and its layers to a JSON file in one atomic step.

        Args:
            path: Path of the file.

        Raises:
            OSError: If the folder cannot be written.
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

    def _layer_table(self) -> Table:
        headings: tuple[str, ...] = (
            "weights",
            "kept",
            "effective",
            "density",
            "eff. density",
            "live in",
            "live out",
            "FLOPs",
            "sparse",
            "score",
            "flow",
        )
        spectra = any(layer.spectral_gap is not None for layer in self.layers)
        if spectra:
            headings += ("gap", "Ramanujan")
        table = new_table("parameter", "shape", numbers=headings)
        for layer in self.layers:
            table.add_row(
                layer.name,
                "x".join(map(str, layer.shape)),
                *(f"{count:,}" for count in (layer.total, layer.kept, layer.effective)),
                format_fraction(layer.density),
                format_fraction(layer.effective_density),
                f"{layer.living_inputs}/{layer.inputs}",
                f"{layer.living_units}/{layer.units}",
                format_count(layer.flops),
                format_count(layer.sparse_flops),
                f"{layer.score_mean:.3g}",
                f"{layer.flow:.4f}",
                *((f"{layer.spectral_gap:.2f}", f"{layer.ramanujan:+.2f}") if spectra else ()),
                style=None if layer.effective else "red",
            )
        table.add_section()
        table.add_row(
            "all",
            "",
            *(f"{count:,}" for count in (self.total, self.kept, self.effective)),
            format_fraction(self.density),
            format_fraction(self.effective_density),
            "",
            "alive" if self.alive else "dead",
            format_count(self.flops),
            format_count(self.sparse_flops),
            style="bold" if self.alive else "bold red",
        )
        return table

    def _remarks(self) -> list[str]:
        """Return the lines below the table."""
        if not self.alive:
            error = "unknown, since nothing flows"
        elif self.conservation_error > 1e-9:
            error = f"{self.conservation_error:.2g}"
        else:
            error = "0 (but for rounding)"
        dense, sparse = format_count(self.flops), format_count(self.sparse_flops)
        lines = [
            f"compression {self.compression:.4g}; FLOPs {dense} dense, {sparse} sparse;"
            f" conservation error {error}"
        ]
        if self.collapsed:
            lines.append(f"no weight left: {', '.join(self.collapsed)}")
        if self.broken is not None:
            lines.append(f"no path leads past {self.broken}")
        modules: dict[str, list[str]] = {}
        for module, kind in self.inhomogeneous.items():
            modules.setdefault(kind, []).append(module)
        lines += [
            f"not homogeneous, replaced in the linear network: {kind} ({_abbreviate(names)})"
            for kind, names in modules.items()
        ]
        return [*lines, *self.notes]


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
        | {k: v for k, v in asdict(layer).items() if k not in counted and v is not None}
    )


def _abbreviate(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)}: {', '.join(names[:3])}{more}"
