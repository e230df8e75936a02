"""Gradual: the rounds of a pruning spread evenly over optimiser steps, instead of one after the other (Zhu & Gupta 2017)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Gradual"]


@dataclass
class Gradual:
    """Where a gradual pruning stands.

    Attributes:
        begun: optimiser steps that had been taken when it began.
        done: rounds that are over.
    """

    begun: int
    done: int = 0

    def due(self, step: int, last: int, rounds: int) -> int:
        """How many of the ``rounds`` are to be over after optimiser step ``step``; all of them from ``last`` on."""
        return rounds if step >= last else (step - self.begun) * rounds // (last - self.begun)
