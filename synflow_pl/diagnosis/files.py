"""CSV and JSON files, written in one atomic step."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from synflow_pl.io import atomic_write

__all__ = ["write_csv", "write_json"]


def write_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a CSV file in one atomic step.

    Args:
        path: Path of the file.
        rows: At least one row; all have the columns of the first.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write a JSON file in one atomic step.

    Args:
        path: Path of the file.
        content: Numbers, text, lists and mappings. Numbers that are not finite become null, since
            JSON has no infinity.
    """
    text = json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def _finite(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
