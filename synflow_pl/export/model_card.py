"""Model card: a Markdown page beside exported files that describes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from synflow_pl.export import checksums
from synflow_pl.export.formats import FORMATS
from synflow_pl.export.metadata import AnyMetadata, Metadata
from synflow_pl.io import atomic_write

__all__ = ["write_card"]


def write_card(path: Path, metadata: AnyMetadata, differences: Mapping[str, float]) -> Path:
    """Write the model card ``NAME.md`` beside ``NAME.onnx`` and the other exported files.

    The card describes the network, its input and output, and the size and checksum of each file.
    The row of a file that was written earlier is kept if the existing card has the same description
    and the file has not changed.

    Args:
        path: Path of the exported files, without suffix.
        metadata: Metadata of the network.
        differences: Largest difference from the network over its largest output, by format, for
            the files that were written by this export.

    Returns:
        The path of the card.
    """
    own = metadata.arguments if isinstance(metadata, Metadata) else {}
    arguments = " ".join(f"{key}={value}" for key, value in own.items())
    lines = [f"# {metadata.properties.get('name', metadata.network.rpartition('.')[2])}", ""]
    lines += [f"- network: `{metadata.network}` {arguments}".rstrip()]
    lines += [f"- {key}: {value}" for key, value in metadata.properties.items() if key != "name"]
    lines += [
        *metadata.card(),
        "",
        "| file | bytes | SHA-256 | largest difference from the network, of the largest output |",
        "| --- | --- | --- | --- |",
    ]
    card = path.with_name(f"{path.name}.md")
    before = card.read_text(errors="replace") if card.is_file() else ""
    known = checksums.rows(before) if before.startswith("\n".join(lines)) else {}
    undescribed = []
    for name in FORMATS:
        file = path.with_name(f"{path.name}.{name}")
        if not file.is_file():
            continue
        checksum = checksums.sha256(file)
        if name in differences:
            size, difference = file.stat().st_size, differences[name]
            lines.append(f"| `{file.name}` | {size:,} | `{checksum}` | {difference:.1e} |")
        elif file.name in known and known[file.name][0] == checksum:
            lines.append(known[file.name][1])
        else:
            undescribed.append(f"`{file.name}`")
    lines += (
        ["", f"Not described here, since another export wrote it: {', '.join(undescribed)}."]
        if undescribed
        else []
    )
    with atomic_write(card) as stream:
        stream.write(("\n".join(lines) + "\n").encode())
    return card
