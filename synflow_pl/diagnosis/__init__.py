"""Diagnosis of a pruned network: density, effective density, FLOPs, flow and conservation."""

from synflow_pl.diagnosis.comparison import Comparison
from synflow_pl.diagnosis.diagnose import diagnose
from synflow_pl.diagnosis.diagnosis import DeadNetwork, Diagnosis, Layer
from synflow_pl.diagnosis.mask_history import MaskHistory

__all__ = ["Comparison", "DeadNetwork", "Diagnosis", "Layer", "MaskHistory", "diagnose"]
