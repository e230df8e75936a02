"""Checksums of exported files, which are written into the model card beside them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

__all__ = ["card_of", "check", "rows", "sha256"]

_ROW = re.compile(r"^\| `(?P<file>[^`]+)` \| [\d,]+ \| `(?P<sum>[0-9a-f]{64})` \|.*$", re.MULTILINE)


def card_of(file: Path) -> Path:
    """Return the path of the model card of an exported file, which may not exist."""
    return file.with_suffix(".md")


def sha256(file: Path) -> str:
    """Return the SHA-256 checksum of a file in hexadecimal digits."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def rows(card: str) -> dict[str, tuple[str, str]]:
    """Return the checksum and the whole table row of each file in a card's text, by file name."""
    return {match["file"]: (match["sum"], match[0]) for match in _ROW.finditer(card)}


def check(file: Path) -> None:
    """Compare the checksum of a file with the one in the card beside it, if there is one.

    Args:
        file: Path of the file.

    Raises:
        ValueError: If the checksums differ.
    """
    card = card_of(file)
    if (
        card.is_file()
        and (row := rows(card.read_text(errors="replace")).get(file.name))
        and row[0] != sha256(file)
    ):
        raise ValueError(
            f"{str(file)!r} is not the file that {card.name!r} beside it describes: its SHA-256 is"
            " another, so it is damaged or was replaced; export it anew, or take the card away"
        )
