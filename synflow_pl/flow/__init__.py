"""Synaptic flow through any network: record it, linearise it, follow it."""

from synflow_pl.flow.linearise import linearise
from synflow_pl.flow.paths import DeadNetwork, Paths, death, path_left
from synflow_pl.flow.recording import evaluating, example_of, record
from synflow_pl.flow.skeleton import Block, Skeleton, magnitude
from synflow_pl.flow.units import unit_sums

__all__ = [
    "Block",
    "DeadNetwork",
    "Paths",
    "Skeleton",
    "death",
    "evaluating",
    "example_of",
    "linearise",
    "magnitude",
    "path_left",
    "record",
    "unit_sums",
]
