"""Card: a page beside exported files that says what they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from synflow_pl.export import checksums
from synflow_pl.export.formats import FORMATS
from synflow_pl.export.metadata import Metadata
from synflow_pl.io import atomic_write

__all__ = ["write_card"]


def write_card(path: Path, facts: Metadata, differences: Mapping[str, float]) -> Path:
    """Write ``NAME.md`` beside ``NAME.onnx`` and the like: what, how sparse, how good, sizes and
    checksums.

    A file of an earlier call stays in the table if the card that was there says the same of the
    network, and it is still the same file.

    Args:
        path: of the files, without an ending.
        facts: of the network.
        differences: by format, for what was written now: the largest difference from the network
            over its largest output.
    """
    c, h, w = facts.input_shape
    lines = [f"# {facts.told.get('name', facts.network.rpartition('.')[2])}", ""]
    lines += [
        f"- network: `{facts.network}` {' '.join(f'{key}={value}' for key, value in facts.arguments.items())}".rstrip()
    ]
    lines += [f"- {key}: {value}" for key, value in facts.told.items() if key != "name"]
    lines += [
        f"- input `images`: float32 (N, {c}, {h}, {w}), pixels in [0, 1], less {list(facts.mean)}, over {list(facts.std)}",
        f"- output `logits`: float32 (N, {facts.num_classes})",
        "",
        "| file | bytes | SHA-256 | largest difference from the network, of the largest output |",
        "| --- | --- | --- | --- |",
    ]
    card = path.with_name(f"{path.name}.md")
    before = card.read_text(errors="replace") if card.is_file() else ""
    known = checksums.rows(before) if before.startswith("\n".join(lines)) else {}
    strange = []
    for name in FORMATS:
        file = path.with_name(f"{path.name}.{name}")
        if not file.is_file():
            continue
        checksum = checksums.sha256(file)
        if name in differences:
            lines.append(
                f"| `{file.name}` | {file.stat().st_size:,} | `{checksum}` | {differences[name]:.1e} |"
            )
        elif file.name in known and known[file.name][0] == checksum:
            lines.append(known[file.name][1])
        else:
            strange.append(f"`{file.name}`")
    lines += (
        ["", f"Not described here, since another export wrote it: {', '.join(strange)}."]
        if strange
        else []
    )
    with atomic_write(card) as written:
        written.write(("\n".join(lines) + "\n").encode())
    return card
