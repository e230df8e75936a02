"""Pruners, one method per file."""

from synflow_pl.pruners.base import Pruner, PruningState, Saliency
from synflow_pl.pruners.force import FORCE
from synflow_pl.pruners.gradual import GradualMagnitude
from synflow_pl.pruners.grasp import GraSP, InvertedGraSP
from synflow_pl.pruners.grasp_it import GRASPIt
from synflow_pl.pruners.lamp import LAMP
from synflow_pl.pruners.log_synflow import LogSynFlow
from synflow_pl.pruners.magnitude import Magnitude
from synflow_pl.pruners.ntk_sap import NTKSAP
from synflow_pl.pruners.obd import FisherOBD, HutchinsonOBD
from synflow_pl.pruners.phew import PHEW
from synflow_pl.pruners.prospr import ProsPr
from synflow_pl.pruners.px import PX
from synflow_pl.pruners.random import Random
from synflow_pl.pruners.rigl import RigL
from synflow_pl.pruners.sanity import Inverted, Reinitialised, Shuffled
from synflow_pl.pruners.snip import SNIP
from synflow_pl.pruners.sparse_evolutionary import SET
from synflow_pl.pruners.synflow import SynFlow
from synflow_pl.pruners.synflow_l2 import SynFlowL2, SynFlowL2AsPublished

__all__ = [
    "FORCE",
    "LAMP",
    "NTKSAP",
    "PHEW",
    "PX",
    "SET",
    "SNIP",
    "FisherOBD",
    "GRASPIt",
    "GraSP",
    "GradualMagnitude",
    "HutchinsonOBD",
    "Inverted",
    "InvertedGraSP",
    "LogSynFlow",
    "Magnitude",
    "ProsPr",
    "Pruner",
    "PruningState",
    "Random",
    "Reinitialised",
    "RigL",
    "Saliency",
    "Shuffled",
    "SynFlow",
    "SynFlowL2",
    "SynFlowL2AsPublished",
]
