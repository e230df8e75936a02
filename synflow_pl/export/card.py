"""Card: a page beside exported files that says what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from synflow_pl.durable import replacing
from synflow_pl.export.facts import Facts
from synflow_pl.export.formats import FORMATS

__all__ = ["write_card"]


def write_card(path: Path, facts: Facts, differences: Mapping[str, float]) -> Path:
    """Write ``NAME.md`` beside ``NAME.onnx`` and the like: what, how sparse, how good, sizes and checksums of all there are.

    Args:
        path: of the files, without an ending.
        facts: of the network.
        differences: by format, for what was written now: the largest difference from the network over its largest output.
    """
    c, h, w = facts.input_shape
    lines = [f"# {facts.told.get('name', facts.network.rpartition('.')[2])}", ""]
    lines += [f"- network: `{facts.network}` {' '.join(f'{key}={value}' for key, value in facts.arguments.items())}".rstrip()]
    lines += [f"- {key}: {value}" for key, value in facts.told.items() if key != "name"]
    lines += [
        f"- input `images`: float32 (N, {c}, {h}, {w}), pixels in [0, 1], less {list(facts.mean)}, over {list(facts.std)}",
        f"- output `logits`: float32 (N, {facts.num_classes})",
        "",
        "| file | bytes | SHA-256 | largest difference from the network, of the largest output |",
        "| --- | --- | --- | --- |",
    ]
    for name in FORMATS:
        file = path.with_name(f"{path.name}.{name}")
        if file.is_file():
            content = file.read_bytes()
            apart = f"{differences[name]:.1e}" if name in differences else "verified when it was written"
            lines.append(f"| `{file.name}` | {len(content):,} | `{hashlib.sha256(content).hexdigest()}` | {apart} |")
    card = path.with_name(f"{path.name}.md")
    with replacing(card) as written:
        written.write(("\n".join(lines) + "\n").encode())
    return card
