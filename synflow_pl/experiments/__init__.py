"""Experiments on the theory of SynFlow, one per file.

Each turns a network and a pruner into the rows of a table.
"""

from synflow_pl.experiments.first_round_scores import first_scores
from synflow_pl.experiments.layers import LayerScore, largest_difference, layer_scores, variation
from synflow_pl.experiments.magnitude_conservation import Snapshot, SquaredMagnitudes
from synflow_pl.experiments.schedule import RoundRatio, largest_ratio
from synflow_pl.experiments.units import unit_differences

__all__ = [
    "LayerScore",
    "RoundRatio",
    "Snapshot",
    "SquaredMagnitudes",
    "first_scores",
    "largest_difference",
    "largest_ratio",
    "layer_scores",
    "unit_differences",
    "variation",
]
