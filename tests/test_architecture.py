"""Imports run one way, towards the rooms that know less; names and modules keep the layout."""

from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
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
    {"pruning"},
    {"structure"},
    {"diagnosis", "compaction"},
    {"fixed_rounds", "effective_density"},
    {"automatic_rounds"},
    {"round_scorer", "pruning_targets"},
    {"pruning_checks", "pruning_options"},
    {"selection"},
    {"pruners"},
    {"bias_norm_masks"},
    {"flow"},
    {"graph"},
    {"device_selection"},
    {"budget_selection", "block_memory"},
    {"masks", "schedules", "order_statistics", "numerics", "granularity"},
    {"prunable_parameters"},
    {"io", "parameters", "optimizer_hook"},
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


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("synflow_pl", *parts)).removesuffix(".__init__")


def module_imports() -> dict[str, set[str]]:
    """Return the modules of the package that each of its modules imports.

    Imports inside functions and imports for type checking count as well.
    """
    # synflow_pl/__init__.py imports a name when it is first used, so any module may import it.
    modules = set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py"}
    paths = {module_name(path): path for path in modules}
    imported = {}
    for name, path in paths.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    found.add(submodule if submodule in paths else node.module)
        imported[name] = (found & paths.keys()) - {name}
    return imported


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


def test_no_two_files_of_the_package_share_a_base_name() -> None:
    files = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        files[path.name].append(path)
    assert {name for name, paths in files.items() if len(paths) > 1} - {"__init__.py"} == set()


def test_no_file_of_the_package_is_longer_than_350_lines() -> None:
    lengths = {
        str(path.relative_to(PACKAGE)): len(path.read_text().splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert {file: length for file, length in lengths.items() if length > 350} == {}


def test_no_import_cycle_joins_modules() -> None:
    imported = module_imports()
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' <- '.join(error.args[1])}")


def test_no_module_bears_the_name_of_a_public_function() -> None:
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert not modules & set(synflow_pl.__all__)


def test_every_public_name_can_be_had() -> None:
    assert all(getattr(synflow_pl, name) is not None for name in synflow_pl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        synflow_pl.prun  # noqa: B018
