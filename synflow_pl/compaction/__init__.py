"""Compaction: the smaller network that does what a pruned one does."""

from synflow_pl.compaction.compaction import Compaction, compact
from synflow_pl.compaction.freezing import freeze
from synflow_pl.compaction.resize import resize

__all__ = ["Compaction", "compact", "freeze", "resize"]
