"""The documentation is true: its Python runs, and the options, files and names in it exist."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import synflow_pl.pruners
from docs import hooks
from synflow_pl.pruners import Pruner
from tests.docs.pages import PAGES, README, ROOT, examples, run, shape_of

DOCS = ROOT / "docs"
EXECUTABLE = [page for page in PAGES if examples(page)]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", EXECUTABLE, ids=name_of)
def test_the_python_of_a_page_runs_and_prints_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # restored afterwards: a page may seed everything
    for example, printed in zip(examples(page), run(page, tmp_path), strict=True):
        if example.shown is not None:
            assert shape_of(printed) == shape_of(example.shown), "python -m tests.docs.pages"


def test_every_page_is_in_the_navigation() -> None:
    class Loader(yaml.SafeLoader):
        """Reads mkdocs.yml without importing what its tags name."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(_leaves(yaml.load(text, Loader)["nav"]))
    assert listed == {page.relative_to(DOCS).as_posix() for page in PAGES}


def test_every_link_and_picture_of_a_page_leads_to_a_file() -> None:
    for page in [*PAGES, README]:
        for target in re.findall(r"\]\((?!http)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).is_file(), f"{name_of(page)}: {target}"


def test_every_comment_that_asks_for_a_table_is_replaced() -> None:
    for page in PAGES:
        assert "<!-- generate" not in hooks.expand(page.read_text()), name_of(page)


def test_every_option_that_a_page_names_exists() -> None:
    known = set(re.findall(r"--([\w.]+)", _help()))
    groups = {name.split(".")[0] for name in known if "." in name}
    for page in [*PAGES, README]:
        text = hooks.expand(page.read_text())
        for name in re.findall(r"(?<![\w-])--(\w+\.[\w.]*\w)", text):
            group, _, rest = name.partition(".")
            if group in groups and rest.split(".")[0] not in _nested(group, known):
                raise AssertionError(f"{name_of(page)}: there is no option --{name}")


def test_every_pruner_has_a_section_with_its_equation() -> None:
    text = (DOCS / "reference" / "pruners.md").read_text()
    for name in synflow_pl.pruners.__all__:
        value = getattr(synflow_pl.pruners, name)
        if inspect.isclass(value) and issubclass(value, Pruner) and value is not Pruner:
            assert f"`{name}`" in text, name
    for section in re.findall(r"\]\(#([\w-]+)\) *\|", text):
        heading = re.search(rf"^## {section.replace('-', '[- ]')}$", text, flags=re.M | re.I)
        assert heading is not None, section
        body = text[heading.end() :].split("\n## ")[0]
        assert "$" in body, section


def test_every_path_that_the_contributor_page_names_exists() -> None:
    text = (DOCS / "contributing" / "where-things-are.md").read_text()
    paths = re.findall(r"`([\w/.]+/[\w/.]*)`", text)
    assert len(paths) > 30
    for path in paths:
        assert (ROOT / path).exists() or "NAME" in path, path


def _leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav
    return [leaf for value in values for leaf in _leaves(value)]


def _help() -> str:
    commands = [["fit"], ["predict"], ["sweep"], ["report"], ["multishot"], ["export"], ["compact"]]
    return "\n".join(hooks.help_of(*command) for command in commands)


def _nested(group: str, known: set[str]) -> set[str]:
    """Return the options of a group: those of the help, and arguments of any of its classes."""
    names = {name.split(".")[1] for name in known if name.startswith(f"{group}.")}
    if group == "data":
        names |= set(re.findall(r"--data\.(\w+)", hooks.data_base())) | {"help"}
    return names
