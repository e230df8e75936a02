"""Figures, one per file, in a common style.

They are drawn from arrays and need no network.
"""

from synflow_pl.figures.accuracy_against import Curve, accuracy_against
from synflow_pl.figures.accuracy_grid import accuracy_grid
from synflow_pl.figures.density_by_pruner import density_by_pruner
from synflow_pl.figures.density_per_layer import density_per_layer
from synflow_pl.figures.layer_averages import layer_averages
from synflow_pl.figures.layers_by_pruner import layers_by_pruner
from synflow_pl.figures.layers_over_rounds import layers_over_rounds
from synflow_pl.figures.magnitude_growth import magnitude_growth
from synflow_pl.figures.round_ratios import round_ratios
from synflow_pl.figures.unit_conservation import unit_conservation
from synflow_pl.figures.unit_scores import unit_scores

__all__ = [
    "Curve",
    "accuracy_against",
    "accuracy_grid",
    "density_by_pruner",
    "density_per_layer",
    "layer_averages",
    "layers_by_pruner",
    "layers_over_rounds",
    "magnitude_growth",
    "round_ratios",
    "unit_conservation",
    "unit_scores",
]
