"""Synaptic flow through any network: trace it, make it linear and positive, follow the flow."""

from synflow_pl.flow.acting_parameters import acting_on, acting_parameters
from synflow_pl.flow.active_paths import linearise_active
from synflow_pl.flow.connectivity import (
    Connectivity,
    DeadNetwork,
    disconnection_message,
    is_connected,
)
from synflow_pl.flow.conservation import unit_sums
from synflow_pl.flow.linear_network import LinearNetwork
from synflow_pl.flow.linearise import linearise
from synflow_pl.flow.unit_numbers import number_units
from synflow_pl.flow.weights import Block, magnitude
from synflow_pl.graph.evaluation import evaluating
from synflow_pl.graph.example_inputs import example_of
from synflow_pl.graph.trace import trace

__all__ = [
    "Block",
    "Connectivity",
    "DeadNetwork",
    "LinearNetwork",
    "acting_on",
    "acting_parameters",
    "disconnection_message",
    "evaluating",
    "example_of",
    "is_connected",
    "linearise",
    "linearise_active",
    "magnitude",
    "number_units",
    "trace",
    "unit_sums",
]
