"""Comparison: what several pruners did to the same network, side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from synflow_pl.diagnosis.diagnosis import Diagnosis
from synflow_pl.diagnosis.diagnosis_table import empty, fraction, plain, short
from synflow_pl.diagnosis.files import write_csv

__all__ = ["Comparison"]


@dataclass(frozen=True)
class Comparison:
    """Of the same network, by the pruner's name: its diagnosis, and the seconds that pruning
    took.
    """

    told: Mapping[str, Diagnosis]
    seconds: Mapping[str, float]

    def __rich__(self) -> Table:
        """The table as rich draws it."""
        table = empty("", numbers=tuple(self.told))
        for name, *densities in zip(self.layers, *self.densities.values(), strict=True):
            table.add_row(name, *map(fraction, densities))
        table.add_section()
        for name, facts in self._whole().items():
            table.add_row(name, *(_shown(name, fact) for fact in facts.values()))
        return table

    def table(self) -> str:
        """Density of each layer, a column for each pruner; below, of the whole: density, effective
        density, compression, whether a path is left, FLOPs and seconds. As wide as it has to be.
        """
        return plain(self)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the same with full precision. The file appears whole or not at all.

        Raises:
            OSError: if the folder cannot be written.
        """
        layers = zip(self.layers, *self.densities.values(), strict=True)
        rows = {
            name: dict(zip(self.densities, densities, strict=True)) for name, *densities in layers
        } | self._whole()
        write_csv(path, [{"": name, **facts} for name, facts in rows.items()])

    @property
    def layers(self) -> list[str]:
        """Names of the parameters, in the network's order."""
        return [layer.name for layer in next(iter(self.told.values())).layers]

    @property
    def densities(self) -> dict[str, list[float]]:
        """By pruner, the density of each layer."""
        return {
            pruner: [layer.density for layer in told.layers] for pruner, told in self.told.items()
        }

    def _whole(self) -> dict[str, dict[str, Any]]:
        facts = {
            name: {pruner: getattr(told, name) for pruner, told in self.told.items()}
            for name in _FACTS
        }
        return {_FACTS[name]: row for name, row in facts.items()} | {"seconds": dict(self.seconds)}


_FACTS = {
    "density": "density",
    "effective_density": "effective density",
    "compression": "compression",
    "alive": "alive",
    "flops": "FLOPs, dense",
    "sparse_flops": "FLOPs, sparse",
}


def _shown(name: str, fact: Any) -> str:
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    if name.startswith("FLOPs"):
        return short(fact)
    if name.endswith("density"):
        return fraction(fact)
    return f"{fact:.1f}" if name == "seconds" else f"{fact:.4g}"
