"""Checksums: whether a file is the one that the card beside it describes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

__all__ = ["card_of", "check", "rows", "sha256"]

_ROW = re.compile(r"^\| `(?P<file>[^`]+)` \| [\d,]+ \| `(?P<sum>[0-9a-f]{64})` \|.*$", re.MULTILINE)


def card_of(file: Path) -> Path:
    """Where the card of an exported file lies, if there is one."""
    return file.with_suffix(".md")


def sha256(file: Path) -> str:
    """The checksum of a file, in hexadecimal digits."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def rows(card: str) -> dict[str, tuple[str, str]]:
    """By the name of a file, the checksum that a card says it has and the line that says so."""
    return {found["file"]: (found["sum"], found[0]) for found in _ROW.finditer(card)}


def check(file: Path) -> None:
    """Refuse a file that a card beside it says is another.

    Raises:
        ValueError: if the checksums differ.
    """
    card = card_of(file)
    if (
        card.is_file()
        and (said := rows(card.read_text(errors="replace")).get(file.name))
        and said[0] != sha256(file)
    ):
        raise ValueError(
            f"{str(file)!r} is not the file that {card.name!r} beside it describes: its SHA-256 is another, so it is damaged or was"
            " replaced; export it anew, or take the card away"
        )
