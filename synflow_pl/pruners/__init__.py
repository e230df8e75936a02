"""Pruners, one score per file."""

from synflow_pl.pruners.grasp import GraSP, InvertedGraSP
from synflow_pl.pruners.magnitude import Magnitude
from synflow_pl.pruners.pruner import Pruner, Saliency, Subject
from synflow_pl.pruners.random import Random
from synflow_pl.pruners.snip import SNIP
from synflow_pl.pruners.synflow import SynFlow

__all__ = ["SNIP", "GraSP", "InvertedGraSP", "Magnitude", "Pruner", "Random", "Saliency", "Subject", "SynFlow"]
