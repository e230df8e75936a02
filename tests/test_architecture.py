"""Imports run one way, towards those who know less."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import synflow_pl

PACKAGE = Path(__file__).resolve().parents[1] / "synflow_pl"
# From those who know most to those who know least; a room may import what stands on a later line,
# and its own.
LEVELS = [
    {"__main__"},
    {"cli"},
    {"runs", "experiments", "export"},
    {"training"},
    {"pruning", "diagnosis", "compaction"},
    {"selection"},
    {"pruners"},
    {"bias_norm_masks"},
    {"flow"},
    {"graph"},
    {"masks", "schedules", "order_statistics", "bisection", "numerics"},
    {"io", "parameters"},
]
# They import io alone outside their own room; any room above the pruners may import them.
ALONE = {"networks", "data", "figures"}
LEVEL = {room: index for index, level in enumerate(LEVELS) for room in level}


def imports() -> list[tuple[str, str]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = (
                [node.module]
                if isinstance(node, ast.ImportFrom)
                else [x.name for x in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            parts = [
                module.split(".")
                for module in modules
                if module and module.split(".")[0] == "synflow_pl"
            ]
            found += [(room, part[1]) for part in parts if len(part) > 1 and part[1] != room]
    return found


def test_every_room_has_a_place() -> None:
    rooms = {
        path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")
    } - {"__init__"}
    assert rooms == LEVEL.keys() | ALONE


@pytest.mark.parametrize(("room", "imported"), sorted(set(imports())))
def test_a_room_knows_only_those_who_know_less(room: str, imported: str) -> None:
    if imported in ALONE:
        assert room not in ALONE
        assert LEVEL[room] <= LEVEL["training"]
    elif room in ALONE:
        assert imported == "io"
    else:
        assert LEVEL[room] < LEVEL[imported]


def test_no_module_bears_the_name_of_a_public_function() -> None:
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert not modules & set(synflow_pl.__all__)


def test_every_public_name_can_be_had() -> None:
    assert all(getattr(synflow_pl, name) is not None for name in synflow_pl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        synflow_pl.prun  # noqa: B018
