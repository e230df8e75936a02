"""MkDocs hooks: tables that are made from the code at build time, and equations as MathML.

A page asks for a table by a comment, ``<!-- generate: NAME ARGUMENTS -->``. An unknown name is an
error, so a page cannot lose its table.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Insert the generated tables of a page (called by MkDocs)."""
    return expand(markdown)


def on_page_content(content: str, **_: Any) -> str:
    r"""Draw equations and plain names (called by MkDocs).

    ``\(...\)`` and ``\[...\]`` become MathML, which browsers draw without a script. Roles of
    Sphinx in docstrings, as in ``:meth:`Masks.save```, are dropped.
    """
    from latex2mathml.converter import convert

    def replace(match: re.Match[str]) -> str:
        tag, opening, formula = match.groups()
        display = "block" if opening == "[" else "inline"
        mathml = convert(html.unescape(formula), display=display)
        return f'<{tag} class="arithmatex">{mathml}</{tag}>'

    pattern = r'<(span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</\1>'
    content = re.sub(pattern, replace, content, flags=re.S)
    return re.sub(r":(?:attr|class|data|func|meth|mod):<code>~?", "<code>", content)


def expand(markdown: str) -> str:
    """Return a page's Markdown with every ``<!-- generate: ... -->`` replaced.

    Raises:
        KeyError: if no generator has that name.
    """

    def replace(match: re.Match[str]) -> str:
        name, *arguments = match[1].split()
        return _GENERATORS[name](*arguments)

    return re.sub(r"<!-- generate: (.*?) -->", replace, markdown)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# -- recipes and overlays


def recipes() -> str:
    """Return a row for each recipe: network, data, optimiser and schedule."""
    accuracies = _accuracies()
    rows = []
    for path in sorted(CONFIGS.glob("*.yaml")):
        recipe = yaml.safe_load(path.read_text())
        model, trainer = recipe["model"], recipe["trainer"]
        optimizer, scheduler = model["optimizer"]["init_args"], model["scheduler"]["init_args"]
        drops = " ".join(map(str, scheduler["milestones"]))
        rows.append(
            [
                f"`{path.stem}`",
                _call(model["network"]),
                _class_name(recipe["data"]),
                accuracies.get(path.stem, ""),
                f"{optimizer['lr']:g}",
                f"{trainer['max_epochs']}",
                f"{drops} (x {scheduler['gamma']:g})",
                f"{recipe['data']['init_args']['batch_size']}",
                f"{optimizer['weight_decay']:g}",
                f"{recipe['pruning']['density']:g}",
            ]
        )
    head = ["recipe", "network", "data", "test accuracy", "lr", "epochs", "drops (factor)", "batch"]
    return table([*head, "weight decay", "density"], rows)


def overlays(folder: str) -> str:
    """Return a row for each overlay of a folder: its first comment and what it sets."""
    rows = []
    for path in sorted((CONFIGS / folder).glob("*.yaml")):
        lines = path.read_text().splitlines()
        comment = " ".join(line[1:].strip() for line in lines if line.startswith("#"))
        sets = " ".join(
            f"`{key}: {value}`" for key, value in _leaves(yaml.safe_load(path.read_text()))
        )
        rows.append([f"`{folder}/{path.stem}`", comment, sets])
    return table(["overlay", "description", "settings"], rows)


def sweeps() -> str:
    """Return a row for each sweep: the grid that it runs."""
    rows = []
    for path in sorted((CONFIGS / "sweeps").glob("*.yaml")):
        grid = yaml.safe_load(path.read_text())
        comment = path.read_text().splitlines()[0].lstrip("# ")
        parts = [grid, *({**grid, **part} for part in grid.get("then", []))]
        recipes, pruners, densities = (
            list(dict.fromkeys(value for part in parts for value in part[name]))
            for name in ("recipes", "pruners", "densities")
        )
        seeds = grid.get("seeds", [0])
        few = len(densities) < 3
        span = f"{max(densities):g} to {min(densities):g}"
        rows.append(
            [
                f"`sweeps/{path.stem}`",
                comment,
                ", ".join(f"`{name}`" for name in recipes),
                ", ".join(f"`{name}`" for name in pruners),
                ", ".join(map(str, densities)) if few else f"{len(densities)}: {span}",
                str(len(seeds)),
            ]
        )
    return table(["sweep", "purpose", "recipes", "pruners", "densities", "seeds"], rows)


def _accuracies() -> dict[str, str]:
    """Return, by recipe, the accuracies of docs/accuracies.md: dense, density 0.1, 0.01."""
    cells: dict[str, list[str]] = {}
    for line in (ROOT / "docs" / "accuracies.md").read_text().splitlines():
        if line.startswith("| `"):
            recipe, pruner, density, accuracy, *_rest = (
                cell.strip() for cell in line.strip("|").split("|")
            )
            if (pruner, density) in (("dense", "1"), ("synflow", "0.1"), ("synflow", "0.01")):
                cells.setdefault(recipe.strip("`"), []).append(accuracy)
    return {recipe: " / ".join(values) for recipe, values in cells.items() if any(values)}


def _leaves(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return dotted names and values of a nested mapping; a class with arguments is one value."""
    found: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and "class_path" in value:
            arguments = ", ".join(f"{k}={v}" for k, v in value.get("init_args", {}).items())
            found.append(
                (name, f"{_class_name(value)}({arguments})" if arguments else _class_name(value))
            )
        elif isinstance(value, dict):
            found += _leaves(value, f"{name}.")
        else:
            found.append((name, _default(value)))
    return found


def _class_name(setting: dict[str, Any]) -> str:
    return str(setting["class_path"]).rpartition(".")[2]


def _call(setting: dict[str, Any]) -> str:
    arguments = ", ".join(f"{k}={v}" for k, v in setting.get("init_args", {}).items())
    return f"`{_class_name(setting)}({arguments})`"


# -- options


def options(prefix: str, *paths: str) -> str:
    """Return a row for each argument of a class, as an option of the command line.

    Args:
        prefix: Prefix of the options, such as ``pruning``.
        paths: Class, as ``package.module:Name``; or ``package.module:*`` for every public class.
    """
    rows = []
    for name, annotation, default, description in _arguments(_load(paths[0])):
        rows.append([f"`--{prefix}.{name}`", f"`{annotation}`", default, description])
    return table(["option", "type", "default", "meaning"], rows)


def arguments_of_all(path: str) -> str:
    """Return the arguments of every public class of a module, with a heading for each class."""
    module = importlib.import_module(path)
    parts = []
    for name in sorted(module.__all__, key=str.lower):
        cls = getattr(module, name)
        if inspect.isclass(cls) and not inspect.isabstract(cls) and (rows := _arguments(cls)):
            cells = [[f"`{n}`", f"`{a}`", d, text] for n, a, d, text in rows]
            parts.append(
                f"**`{name}`**\n\n{table(['argument', 'type', 'default', 'meaning'], cells)}\n"
            )
    return "\n".join(parts)


def _arguments(cls: type) -> list[tuple[str, str, str, str]]:
    """Return name, type, default and description of each argument of a class."""
    import docstring_parser

    described = {}
    for kind in reversed(cls.__mro__):
        parsed = docstring_parser.parse(
            inspect.cleandoc(kind.__doc__ or ""), docstring_parser.DocstringStyle.GOOGLE
        )
        described |= {
            param.arg_name: param.description or ""
            for param in parsed.params
            if param.args[0] == "param"
        }
    found = []
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        required = parameter.default is parameter.empty
        default = "required" if required else f"`{_default(parameter.default)}`"
        text = " ".join(described.get(name, "").replace("``", "`").split()).replace("|", "\\|")
        text = re.sub(r":\w+:`~?\.?([^`]+)`", r"`\1`", text)
        found.append(
            (name, _annotation(parameter.annotation), default, text[:1].upper() + text[1:])
        )
    return found


def _annotation(annotation: Any) -> str:
    text = (
        annotation
        if isinstance(annotation, str)
        else getattr(annotation, "__name__", str(annotation))
    )
    return "" if annotation is inspect.Parameter.empty else text.replace("nn.Module", "Module")


def _default(value: Any) -> str:
    if inspect.isfunction(value):
        return "SGD(lr=0.1, momentum=0.9, nesterov=true)"
    if inspect.isclass(value):
        return value.__name__
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def data_base() -> str:
    """Return the options that every data module has."""
    data = importlib.import_module("synflow_pl.data")
    (base,) = [name for name in data.__all__ if inspect.isabstract(getattr(data, name))]
    return options("data", f"synflow_pl.data:{base}")


# -- data sets


def data_sets() -> str:
    """Return a row for each data set: shape, classes, normalisation and augmentation."""
    data = importlib.import_module("synflow_pl.data")
    rows = []
    for name in data.__all__:
        cls = getattr(data, name)
        if not inspect.isabstract(cls):
            padding = cls.crop_padding
            augmentation = (
                "none" if padding is None else f"crops with {padding} pixels of padding, flips"
            )
            numbers = [" ".join(f"{value:g}" for value in values) for values in (cls.mean, cls.std)]
            summary = (inspect.getdoc(cls) or "").splitlines()[0]
            shape = "x".join(map(str, cls.input_shape))
            rows.append([f"`{name}`", shape, str(cls.num_classes), *numbers, augmentation, summary])
    return table(
        ["class", "shape", "classes", "mean", "standard deviation", "augmentation", "description"],
        rows,
    )


# -- commands


@cache
def help_of(*command: str) -> str:
    """Return what ``synflow_pl COMMAND --help`` prints."""
    main = importlib.import_module("synflow_pl.__main__").main
    printed = io.StringIO()
    before = sys.argv, os.environ.get("COLUMNS")
    sys.argv, os.environ["COLUMNS"] = ["synflow_pl", *command, "--help"], "100"
    try:
        with contextlib.redirect_stdout(printed):
            main()
    except SystemExit as stop:
        if stop.code:
            raise ValueError(f"there is no help of {' '.join(command)!r}; see above") from stop
    finally:
        sys.argv = before[0]
        os.environ.pop("COLUMNS") if before[1] is None else os.environ.update(COLUMNS=before[1])
    return re.sub(r"\x1b\[[0-9;]*m|[\x00-\x08\x0b-\x1f\x7f]", "", printed.getvalue())


def command(*words: str) -> str:
    """Return the help of a command as a code block."""
    return f"```text\n{help_of(*words).strip()}\n```\n"


def own_options(*words: str) -> str:
    """Return the options of a command that belong to no class, as a table."""
    rows: list[list[str]] = []
    for line in help_of(*words).splitlines():
        if match := re.match(r"  (?:-\w, )?--([\w.]+)(.*)$", line):
            rows.append([match[1], match[2].strip()])
        elif line.startswith(" " * 10) and rows:
            rows[-1][1] += f" {line.strip()}"
    # An option with a dot in its name, or with options of its own, belongs to a class.
    classes = {name.split(".")[0] for name, _ in rows if "." in name} | {"data"}
    own = [row for row in rows if "." not in row[0] and row[0] not in classes]
    return table(["option", "meaning"], [[f"`--{name}`", text.strip()] for name, text in own])


# -- files


def include(path: str) -> str:
    """Return a Markdown file of the repository without its title, with pictures of docs/ found."""
    text = (ROOT / path).read_text().partition("\n")[2]
    return text.replace("](../docs/", "](../").replace("\n## ", "\n### ")


_GENERATORS: dict[str, Callable[..., str]] = {
    "arguments_of_all": arguments_of_all,
    "command": command,
    "data_base": data_base,
    "data_sets": data_sets,
    "include": include,
    "options": options,
    "overlays": overlays,
    "own_options": own_options,
    "recipes": recipes,
    "sweeps": sweeps,
}
