"""Figures: the house style and one picture a file. Knows arrays, not networks."""

from synflow_pl.figures.accuracy_against import Curve, accuracy_against
from synflow_pl.figures.density_per_layer import density_per_layer
from synflow_pl.figures.layers_over_rounds import layers_over_rounds
from synflow_pl.figures.unit_scores import unit_scores

__all__ = ["Curve", "accuracy_against", "density_per_layer", "layers_over_rounds", "unit_scores"]
