"""The README and the pages of the documentation, their code blocks, and how the blocks are run.

``python -m tests.docs.pages`` runs every page and replaces the outputs that it shows by those that
its blocks print today.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.M | re.S)
# A block of Python, and the block of its output if there is one.
_EXAMPLE = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", flags=re.M | re.S)


def blocks(*languages: str, paths: list[Path] | None = None) -> list[str]:
    """Return the code blocks in these languages, of the README and all pages by default."""
    found = [
        match for path in paths or [README, *PAGES] for match in _BLOCK.findall(path.read_text())
    ]
    return [text for language, text in found if language in languages]


def commands(program: str) -> list[str]:
    """Return each command of a program that a user may copy once, without its comment."""
    lines = [
        re.sub(r"\s+#.*", "", line) for block in blocks("bash", "") for line in block.splitlines()
    ]
    return list(dict.fromkeys(line for line in lines if line.startswith(f"{program} ")))


def words(program: str) -> list[list[str]]:
    """Return what stands after the program in each of its commands."""
    return [shlex.split(line)[1:] for line in commands(program)]


@dataclass(frozen=True)
class Example:
    """A Python block of a page.

    Attributes:
        code: Source of the block.
        shown: Output that the page shows after it, or ``None``.
        line: Line of the page on which the code begins, counted from 1.
    """

    code: str
    shown: str | None
    line: int


def examples(page: Path) -> list[Example]:
    """Return the Python blocks of a page, in order."""
    text = page.read_text()
    matches = _EXAMPLE.finditer(text)
    return [Example(m[1], m[2], text[: m.start(1)].count("\n") + 1) for m in matches]


def run(page: Path, folder: Path) -> list[str]:
    """Run the Python blocks of a page one after the other, as one program, in an empty folder.

    Returns:
        The output of each block.
    """
    names: dict[str, Any] = {"__name__": page.stem}
    printed = []
    before = Path.cwd()
    os.chdir(folder)
    try:
        for example in examples(page):
            # The lines of the page, so that an error names its line there.
            code = compile("\n" * (example.line - 1) + example.code, str(page), "exec")
            output = io.StringIO()
            with contextlib.redirect_stdout(output), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(code, names)
            printed.append(output.getvalue())
    finally:
        os.chdir(before)
    return printed


def shape_of(output: str) -> str:
    """Return an output with every number replaced: sums differ in their last digits by machine."""
    words = re.sub(r"-{3,}", "---", output)
    return " ".join(re.sub(r"\d[\d.,]*(?:e[-+]?\d+)?[kMGT]?\b", "#", words).split())


def update(page: Path) -> None:
    """Replace the outputs that a page shows by those that its blocks print."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = iter(run(page, Path(folder)))

    def replace(match: re.Match[str]) -> str:
        output = next(outputs)
        shown = f"\n```text\n{output.rstrip()}\n```\n" if match[2] is not None else ""
        return f"```python\n{match[1]}```\n{shown}"

    page.write_text(_EXAMPLE.sub(replace, page.read_text()))


if __name__ == "__main__":
    for path in PAGES:
        if any(example.shown is not None for example in examples(path)):
            update(path)
            print(f"updated {path.relative_to(ROOT)}")
