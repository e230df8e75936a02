"""Export: a network as a file that others run, and back."""

from synflow_pl.export.card import write_card
from synflow_pl.export.facts import Facts
from synflow_pl.export.formats import FORMATS, Exported, load_exported
from synflow_pl.export.verified import export, verify

__all__ = ["FORMATS", "Exported", "Facts", "export", "load_exported", "verify", "write_card"]
