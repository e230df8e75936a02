"""Granularity: what a pruning removes together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["Granularity"]

_FORMS = "weight, unit, kernel, block:AxB (block:4x4), N:M (2:4) or N:M-padded"


@dataclass(frozen=True)
class Granularity:
    """Kind of the groups of weights that a pruning removes together, parsed from its name.

    Attributes:
        kind: ``"weight"``, ``"unit"``, ``"kernel"``, ``"block"`` or ``"n:m"``.
        sizes: Outputs and inputs of a block, or N and M.
        padded: Whether a layer whose inputs do not divide by M has a smaller last group.

    Example:
        >>> Granularity.parse("2:4")
        Granularity(kind='n:m', sizes=(2, 4), padded=False)
    """

    kind: Literal["weight", "unit", "kernel", "block", "n:m"]
    sizes: tuple[int, int] = (1, 1)
    padded: bool = False

    @classmethod
    def parse(cls, name: str) -> Granularity:
        """Return the granularity with a name.

        Args:
            name: ``"weight"``; ``"unit"``, output channels and neurons with everything that reads
                them; ``"kernel"``, the weights between an input and an output of a convolution;
                ``"block:AxB"``, blocks of A outputs by B inputs; ``"N:M"``, N kept of every M
                consecutive inputs; ``"N:M-padded"``, the same where the last group may be smaller.

        Raises:
            ValueError: If there is no such granularity.
        """
        if name == "weight":
            return cls("weight")
        if name == "unit":
            return cls("unit")
        if name == "kernel":
            return cls("kernel")
        text = str(name)
        if (match := re.fullmatch(r"block:(\d+)x(\d+)", text)) and "0" not in match.groups():
            return cls("block", (int(match[1]), int(match[2])))
        if match := re.fullmatch(r"(\d+):(\d+)(-padded)?", text):
            kept, size = int(match[1]), int(match[2])
            if 0 < kept < size:
                return cls("n:m", (kept, size), padded=match[3] is not None)
        raise ValueError(f"granularity: {name!r} is not one of {_FORMS}, with 0 < N < M")
