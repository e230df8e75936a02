"""Compaction of a pruned network to a smaller one that computes the same function."""

from synflow_pl.compaction.compaction import Compaction, compact
from synflow_pl.compaction.freezing import freeze
from synflow_pl.compaction.resize import resize

__all__ = ["Compaction", "compact", "freeze", "resize"]
