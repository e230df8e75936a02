"""Diagnosis: what pruning did to one network."""

from synflow_pl.diagnosis.examine import diagnose
from synflow_pl.diagnosis.findings import DeadNetwork, Diagnosis, Layer

__all__ = ["DeadNetwork", "Diagnosis", "Layer", "diagnose"]
