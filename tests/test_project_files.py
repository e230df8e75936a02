"""Files around the package that repeat what is written elsewhere: each agrees with its source."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

import synflow_pl

CHECKOUT = Path(__file__).resolve().parents[1]


def read_yaml(name: str) -> Any:
    return yaml.safe_load((CHECKOUT / name).read_text(encoding="utf-8"))


def make_target(target: str) -> str:
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    return str(recipe)


def test_the_citation_names_the_version_of_the_package_and_the_paper() -> None:
    citation = read_yaml("CITATION.cff")
    assert citation["version"] == synflow_pl.__version__
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Tanaka",
        "Kunin",
        "Yamins",
        "Ganguli",
    ]


def test_the_changelog_has_a_section_for_the_version_of_the_package() -> None:
    changelog = (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased = changelog.split("\n## ")[1]
    assert unreleased.startswith("[Unreleased]")
    assert f"Version {synflow_pl.__version__} has not been released" in unreleased


def test_pre_commit_runs_the_tools_of_make_check() -> None:
    checked = re.findall(r"\$\(VENV\)/bin/(\S+)", make_target("check"))
    (local,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    tools = [Path(hook["entry"].split()[0]).name for hook in local["hooks"]]
    assert tools == checked == ["ruff", "ruff", "mypy", "codespell"]


def test_the_workflow_calls_targets_of_the_makefile() -> None:
    jobs = read_yaml(".github/workflows/test.yml")["jobs"].values()
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    assert commands[0] == "make test"
    assert all(make_target(command.removeprefix("make ")) for command in commands)
