"""The shapes of a network's weights before and after its compaction, as a table in plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

__all__ = ["shape_table"]


def shape_table(
    full: Mapping[str, Tensor], small: Mapping[str, Tensor], notes: Sequence[str]
) -> str:
    """Return the shapes of each weight before and after, and the notes, as plain text.

    Args:
        full: Parameters and buffers of the whole network, by name.
        small: Parameters of the smaller network, by name.
        notes: Reasons why units were not removed, each a sentence without a full stop.
    """
    rows: list[tuple[str, ...]] = [("parameter", "shape", "left")]
    for name, tensor in full.items():
        if tensor.dim() > 1 and name in small:
            shapes = ("x".join(map(str, each.shape)) for each in (tensor, small[name]))
            rows.append((name, *shapes))
    sizes = [
        sum(tensor.numel() for name, tensor in full.items() if name in small),
        sum(tensor.numel() for tensor in small.values()),
    ]
    rows.append(("all parameters", *(f"{size:,}" for size in sizes)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}".rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    kept = [f"Kept: {note}." for note in notes]
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], *kept])
