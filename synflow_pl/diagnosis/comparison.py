"""Comparison of what several pruners did to the same network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from synflow_pl.diagnosis.diagnosis import Diagnosis
from synflow_pl.diagnosis.files import write_csv
from synflow_pl.diagnosis.text_table import (
    format_count,
    format_fraction,
    new_table,
    render_plain,
)

__all__ = ["Comparison"]


@dataclass(frozen=True)
class Comparison:
    """The diagnoses of one network after pruning it with different pruners.

    Attributes:
        diagnoses: Diagnosis of the pruned network, by the pruner's name; at least one.
        seconds: Time that pruning took, by the pruner's name.

    Example:
        >>> import torch
        >>> from synflow_pl import diagnose, prune
        >>> from synflow_pl.diagnosis import Comparison
        >>> from synflow_pl.pruners import Magnitude, SynFlow
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        >>> diagnoses = {
        ...     type(pruner).__name__: diagnose(
        ...         network,
        ...         prune(network, pruner, density=0.5, rounds=1, input_shape=(4,)),
        ...         input_shape=(4,),
        ...     )
        ...     for pruner in (SynFlow(), Magnitude())
        ... }
        >>> comparison = Comparison(diagnoses, {"SynFlow": 0.1, "Magnitude": 0.1})
        >>> comparison.layers
        ['0.weight', '1.weight']
        >>> print(comparison.table().splitlines()[0].split())
        ['SynFlow', 'Magnitude']
    """

    diagnoses: Mapping[str, Diagnosis]
    seconds: Mapping[str, float]

    def __rich__(self) -> Table:
        """Return what ``rich.print(comparison)`` prints: the table of :meth:`table`."""
        table = new_table("", numbers=tuple(self.diagnoses))
        for name, *densities in zip(self.layers, *self.densities.values(), strict=True):
            table.add_row(name, *map(format_fraction, densities))
        table.add_section()
        for name, values in self._network_rows().items():
            table.add_row(name, *(_format(name, value) for value in values.values()))
        return table

    def table(self) -> str:
        """Return a plain text table with a column for each pruner, without a limit on its width.

        The first rows are the density of each layer. The last rows are about the whole network:
        density, effective density, compression, whether input and output are connected, FLOPs and
        seconds.
        """
        return render_plain(self)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table with full precision to a CSV file in one atomic step.

        Args:
            path: Path of the file.

        Raises:
            OSError: If the folder cannot be written.
        """
        layers = zip(self.layers, *self.densities.values(), strict=True)
        rows = {
            name: dict(zip(self.densities, densities, strict=True)) for name, *densities in layers
        } | self._network_rows()
        write_csv(path, [{"": name, **values} for name, values in rows.items()])

    @property
    def layers(self) -> list[str]:
        """Names of the prunable parameters, in the network's order."""
        return [layer.name for layer in next(iter(self.diagnoses.values())).layers]

    @property
    def densities(self) -> dict[str, list[float]]:
        """Density of each layer, by pruner."""
        return {
            pruner: [layer.density for layer in diagnosis.layers]
            for pruner, diagnosis in self.diagnoses.items()
        }

    def _network_rows(self) -> dict[str, dict[str, Any]]:
        rows: dict[str, dict[str, Any]] = {
            label: {
                pruner: getattr(diagnosis, name) for pruner, diagnosis in self.diagnoses.items()
            }
            for name, label in _LABELS.items()
        }
        return rows | {"seconds": dict(self.seconds)}


_LABELS = {
    "density": "density",
    "effective_density": "effective density",
    "compression": "compression",
    "alive": "alive",
    "flops": "FLOPs, dense",
    "sparse_flops": "FLOPs, sparse",
}


def _format(label: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if label.startswith("FLOPs"):
        return format_count(value)
    if label.endswith("density"):
        return format_fraction(value)
    return f"{value:.1f}" if label == "seconds" else f"{value:.4g}"
