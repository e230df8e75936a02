"""Findings: what a diagnosis holds, and how it is read: as a table, as CSV, as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.box import Box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

__all__ = ["DeadNetwork", "Diagnosis", "Layer", "short"]


class DeadNetwork(RuntimeError):
    """No path of living weights leads from input to output."""


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
        flow: share of the flow from input to output that passes the layer, in [0, 1]: the sum of SynFlow's scores in the pruned
            network over the flow at the output. Each layer of a chain has 1, of two branches each its part, and a weight that is used
            k times along a path counts k times.
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
        flops: of one pass over the example (of one image, if an input's shape was given), dense: products with weights, prunable or
            not, and attention; two for each multiplication and addition.
        sparse_flops: the same, of the weights kept alone; attention counts as dense.
        conservation_error: how far the scores are from conserving flow, in [0, inf): the coefficient of variation of the layers' sums
            of scores, over those layers that every path from input to output passes once. By Theorem 2 of Tanaka et al. 2020 it is zero,
            but for rounding, for the synaptic saliency of a network (SynFlow's is, in its skeleton); for other scores it is not.
        inhomogeneous: by module name, what in it breaks the homogeneity that this theorem rests on, and is replaced by something linear
            in the skeleton: a normalisation, a nonlinearity, a gate, attention.
        notes: in whole sentences, what to know about these figures.
        broken: in a dead network, the first weight past which no path of living weights from the input leads.
        died: the round after which no path was left, counted from 1, and the density then, where they are known.
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
        """Prunable weights over those kept, 1 / density, at least 1; 10^2 in the papers is density 0.01. Infinite if none is kept."""
        return self.total / self.kept if self.kept else math.inf

    @property
    def collapsed(self) -> list[str]:
        """Names of the layers with no weight left."""
        return [layer.name for layer in self.layers if layer.kept == 0]

    @property
    def collapse(self) -> str | None:
        """What to be warned of, without a full stop: a dead network, or layers with no weight left; ``None`` if there is nothing."""
        if not self.alive:
            where = ""
            if self.broken is not None:
                why = "has no weight left" if self.broken in self.collapsed else "has weights left, but none on a path from the input"
                where = f"; it breaks at {self.broken!r}, which {why}"
            when = f"since round {self.died[0]}, at density {self.died[1]:.6g}" if self.died else f"at density {self.density:.6g}"
            return (
                f"the network is dead: no path of living weights leads from input to output {when}{where};"
                " try more rounds, a larger density, another scope (local)"
            )
        return f"layers with no weight left, though a path remains: {', '.join(self.collapsed)}" if self.collapsed else None

    # -- how it is read

    def __rich__(self) -> Group:
        """The table as rich draws it: ``rich.print(diagnosis)``."""
        return _drawn(self)

    def table(self) -> str:
        """The layers as a table of plain text, one line each, and the whole below: as wide as it has to be, wherever it is printed."""
        console = Console(file=io.StringIO(), width=10_000, color_system=None, force_terminal=False, legacy_windows=False)
        with console.capture() as captured:
            console.print(self)
        return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line for each layer, and one named "all" for the whole. The file appears whole or not at all.

        Raises:
            OSError: if the folder cannot be written.
        """
        rows = [_row(layer) for layer in self.layers]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _write(path, text.getvalue())

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write all there is, layers and the whole. The file appears whole or not at all.

        Raises:
            OSError: if the folder cannot be written.
        """
        whole = {key: value for key, value in asdict(self).items() if key != "layers"}
        whole |= {name: getattr(self, name) for name in ("density", "effective_density", "compression", "collapsed")}
        content = {**whole, "layers": [_row(layer) | {"shape": list(layer.shape)} for layer in self.layers]}
        _write(path, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")

    @property
    def _summary(self) -> list[str]:
        """What is to be said of the whole beside its line in the table."""
        error = f"{self.conservation_error:.2g}" if self.conservation_error > 1e-9 else "0 (but for rounding)"
        lines = [
            f"compression {self.compression:.4g}; FLOPs {short(self.flops)} dense, {short(self.sparse_flops)} sparse;"
            f" conservation error {error}"
        ]
        if self.collapsed:
            lines.append(f"no weight left: {', '.join(self.collapsed)}")
        if self.broken is not None:
            lines.append(f"no path leads past {self.broken}")
        kinds: dict[str, list[str]] = {}
        for module, kind in self.inhomogeneous.items():
            kinds.setdefault(kind, []).append(module)
        lines += [f"not homogeneous, linear in the skeleton: {kind} ({_some(names)})" for kind, names in kinds.items()]
        return [*lines, *self.notes]


# Rules of hyphens, so that a table reads the same in a log, a file and a terminal.
_PLAIN = Box("    \n    \n -- \n    \n -- \n -- \n    \n    \n", ascii=True)


def _drawn(told: Diagnosis) -> Group:
    table = Table(box=_PLAIN, show_edge=False, pad_edge=False, collapse_padding=True)
    for heading in ("parameter", "shape"):
        table.add_column(heading, no_wrap=True)
    for heading in (
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
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in told.layers:
        table.add_row(
            layer.name,
            "x".join(map(str, layer.shape)),
            *(f"{count:,}" for count in (layer.total, layer.kept, layer.effective)),
            f"{layer.density:.4f}",
            f"{layer.effective_density:.4f}",
            f"{layer.living_inputs}/{layer.inputs}",
            f"{layer.living_units}/{layer.units}",
            short(layer.flops),
            short(layer.sparse_flops),
            f"{layer.score_mean:.3g}",
            f"{layer.flow:.4f}",
            style=None if layer.effective else "red",
        )
    table.add_section()
    table.add_row(
        "all",
        "",
        *(f"{count:,}" for count in (told.total, told.kept, told.effective)),
        f"{told.density:.4f}",
        f"{told.effective_density:.4f}",
        "",
        "alive" if told.alive else "dead",
        short(told.flops),
        short(told.sparse_flops),
        style="bold" if told.alive else "bold red",
    )
    return Group(table, "", *(Text(line) for line in told._summary))


def short(count: int) -> str:
    """A count in four digits: 313.2M."""
    size = float(count)
    for unit in ("", "k", "M", "G"):
        if size < 999.95:
            return f"{size:.1f}{unit}" if unit else f"{count}"
        size /= 1000
    return f"{size:.1f}T"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)}: {', '.join(names[:3])}{more}"


def _row(layer: Layer) -> dict[str, Any]:
    counted = {"name": layer.name, "shape": "x".join(map(str, layer.shape)), "total": layer.total, "density": layer.density}
    return counted | {"effective_density": layer.effective_density} | {k: v for k, v in asdict(layer).items() if k not in counted}


def _finite(tree: Any) -> Any:
    """JSON has no infinity: null stands for it."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _write(path: str | os.PathLike[str], text: str) -> None:
    """Write beside the target, then rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
