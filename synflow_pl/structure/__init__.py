"""Groups of weights that are removed together, and the rounds that remove them."""

from synflow_pl.structure.budgets import structured_budget
from synflow_pl.structure.latency import compare_latency, flops_for_latency
from synflow_pl.structure.rounds import run_structured_rounds

__all__ = [
    "compare_latency",
    "flops_for_latency",
    "run_structured_rounds",
    "structured_budget",
]
