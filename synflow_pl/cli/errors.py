"""Error messages of one sentence, and help texts that fit on a few screens.

jsonargparse explains a mistake by listing every type that it tried, and an option by listing every
subclass that torch has. This module extracts the option, the value and what was expected from
these explanations.
"""

from __future__ import annotations

import argparse
import enum
import inspect
import re
import textwrap
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

import yaml
from pytorch_lightning.cli import LightningArgumentParser

from synflow_pl.cli import COMMANDS, TRAINER_COMMANDS
from synflow_pl.cli.options import exit_with_error
from synflow_pl.cli.options import near as _near

__all__ = [
    "PACKAGE_MODULES",
    "Parser",
    "clarify",
    "exit_with_error",
    "import_class",
    "refuse_function",
]

PACKAGE_MODULES = {
    "model.network": "synflow_pl.networks",
    "data": "synflow_pl.data",
    "pruning.pruner": "synflow_pl.pruners",
}
"""Module of this package whose classes an option takes, by option."""
_TORCH_MODULES = {
    "model.optimizer": "torch.optim",
    "model.scheduler": "torch.optim.lr_scheduler",
    "model.loss": "torch.nn",
}
_SUBCOMMANDS = sorted((*COMMANDS, *TRAINER_COMMANDS))
_NO_CLASS = (
    "Expected a dot import path string",
    "Problem with given class_path",
    "Import path does not correspond",
    "No subclass named",
)


def _represent(dumper: yaml.SafeDumper, member: enum.Enum) -> yaml.Node:
    """Write an enum member as the text that a configuration file uses for it."""
    return dumper.represent_str(member.value if isinstance(member, str) else member.name)


# Third-party classes (such as Lightning's Timer) have enums as defaults of arguments annotated as
# text, which PyYAML refuses to write.
yaml.SafeDumper.add_multi_representer(enum.Enum, _represent)


def classes(option: str) -> list[str]:
    """Return the full paths of the classes to suggest for an option."""
    room = PACKAGE_MODULES.get(option) or _TORCH_MODULES.get(option)
    if room is None:
        return []
    module = import_module(room)
    names = getattr(module, "__all__", None) or dir(module)
    base = {"data": "ImageDataModule", "pruning.pruner": "Pruner"}.get(option)
    found = [
        name
        for name in names
        if isinstance(getattr(module, name), type) and not inspect.isabstract(getattr(module, name))
    ]
    return [
        f"{room}.{name}"
        for name in found
        if base is None or issubclass(getattr(module, name), getattr(module, base))
    ]


def refuse_function(path: str) -> None:
    """Raise an error that names an alternative if a network is given as a function's path.

    Only a class has a signature from which the command line can fill in arguments such as
    ``input_shape``.

    Args:
        path: Dotted path given as ``model.network``.

    Raises:
        ValueError: If ``path`` is that of a function.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name, None) if module else None
    except ImportError:
        return  # the parser's message about an unknown class is clearer
    if not inspect.isroutine(found):
        return
    kind = {"torchvision": "TorchVision", "timm": "Timm"}.get(module.partition(".")[0])
    instead = (
        f"--model.network {kind} --model.network.name {name}"
        if kind
        else "a class of your own that returns it from __new__"
    )
    raise ValueError(f"model.network: {path!r} is a function, expected a class; use {instead}")


def clarify(message: str, options: list[str]) -> str:
    """Return jsonargparse's explanation of a mistake as one sentence.

    Args:
        message: Message of jsonargparse.
        options: Names of all options, without leading dashes, from which corrections are suggested.
    """
    for pattern in (
        r"unrecognized arguments: (?:--)?([^\s=]+)",
        r"does not accept (?:option|nested key|key) '([^']+)'",
        r"Key '([^']+)' is not expected",
    ):
        if unknown := re.search(pattern, message):
            return _no_option(unknown[1], message, options)
    if unknown := re.search(r"subcommand: invalid choice: '([^']*)'", message):
        hint = _near(unknown[1], _SUBCOMMANDS)
        return f"there is no subcommand {unknown[1]!r}{hint}; there are {', '.join(_SUBCOMMANDS)}"
    if 'expected "subcommand"' in message:
        return f"expected a subcommand; there are {', '.join(_SUBCOMMANDS)}"
    if unknown := re.search(r"Option '(\w+)' is not accepted", message):
        hint = _near(unknown[1], _arguments()) or "; see its class with --...help CLASS'"
        return f"there is no option {unknown[1]}{hint}"
    if missing := re.search(r"arguments are required: ([\w.]+)", message):
        if "." not in missing[1]:
            return f"{missing[1]} is missing, which the class that was named cannot do without"
        key = missing[1].partition(".")[2]
        return (
            f"{key} is missing; name a recipe with -c (mnist_fc), or give --{key} "
            f"({_some(classes(key))})"
        )
    if absent := re.search(
        r"given class_path '[\w.]*?(\w+)':\s+"
        r".*?(?:Requirement|Module) '([\w-]+)[^']*' not (?:met|found)",
        message,
    ):
        package = absent[2]
        return (
            f"{absent[1]} needs the package {package}, which is not installed: pip install "
            f"{package}"
        )
    found = re.search(r"Parser key [\"']([^\"']+)[\"']", message)
    key = found[1].removeprefix("fit.").removeprefix("test.") if found else ""
    wrong = re.search(r"(?:Expected a path but|given class_path) '?(\S+?)'?(?::| either)", message)
    if (
        wrong
        and (key in PACKAGE_MODULES or key in _TORCH_MODULES)
        and any(sign in message for sign in _NO_CLASS)
    ):
        # If the class exists, one of its arguments is wrong, and the next line gives the cause.
        inner = re.search(r"Problem with given class_path '\S+?':\n\s+(\S.*)", message)
        if inner and _exists(wrong[1]):
            return f"{key}: {wrong[1].rpartition('.')[2]}: {inner[1]}"
        return _no_class(key, wrong[1])
    given = re.search(r"(?:Given value|Got value): ?(.*)", message)
    causes = [line.strip(" -") for line in message.splitlines() if re.match(r"\s*- ", line)]
    causes = [
        line
        for line in causes
        if not line.startswith(("Expected a", "Does not validate", "Import path"))
    ]
    if causes:
        return (f"{key}: " if key and not causes[0].startswith(key) else "") + causes[
            0
        ].removeprefix("Problem with given class_path ")
    if given and key:
        value = given[1].strip()
        return f"{key}: {value!r} is not {_expected(message)}{_near(value, _choices(message))}"
    return " ".join(message.split())


def _no_option(name: str, message: str, options: list[str]) -> str:
    parent = re.search(r"Group '([\w.]+)'|subcommand '(\w+)'", message)
    full = name if "." in name or not parent else f"{parent[1] or ''}.{name}".strip(".")
    return f"there is no option {full}{_near(full, options) or '; see --help'}"


def _no_class(key: str, wrong: str) -> str:
    known = classes(key)
    by_name = {path.rpartition(".")[2]: path for path in known}
    near = get_close_matches(wrong.rpartition(".")[2], by_name, n=1, cutoff=0.5)
    hint = (
        f"did you mean {near[0]} ({by_name[near[0]]})?"
        if near
        else f"there are {_some(known)}, or give a full path of your own"
    )
    return f"{key}: {wrong!r} is not a class that can be used here; {hint}"


def _arguments() -> list[str]:
    """Return the argument names of every class that :func:`classes` lists."""
    paths = [
        path
        for option in (*PACKAGE_MODULES, "model.optimizer", "model.scheduler")
        for path in classes(option)
    ]
    return [name for path in paths for name in inspect.signature(import_class(path)).parameters]


def import_class(path: str) -> Any:
    """Import the object with a dotted path, such as ``torch.optim.SGD``."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _exists(path: str) -> bool:
    try:
        import_class(path)
    except (ImportError, AttributeError, ValueError):
        return False
    return True


def _names(paths: list[str]) -> list[str]:
    return [path.rpartition(".")[2] for path in paths]


def _some(paths: list[str]) -> str:
    names = _names(paths)
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def _choices(message: str) -> list[str]:
    return [
        choice.strip("' ")
        for group in re.findall(r"Literal\[([^\]]*)\]", message)
        for choice in group.split(",")
    ]


def _expected(message: str) -> str:
    names = re.findall(r"Expected an? <class '([\w.]+)'>", message)
    choices = _choices(message)
    words = {
        "NoneType": "null",
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "str": "text",
    }
    expected = [f"one of {', '.join(dict.fromkeys(choices))}"] if choices else []
    expected += [words.get(name, f"a {name}") for name in names]
    return " or ".join(dict.fromkeys(expected)) or "possible there"


class Parser(LightningArgumentParser):
    """Argument parser with errors of one sentence and a help text of a line or two per option.

    An error about an unknown name suggests the closest known one.
    """

    own: Sequence[str] = ()
    """Names of further options, which the subcommand parses by itself."""

    def options(self) -> list[str]:
        """Return the names of all options, subcommands' included, without leading dashes."""
        names: list[str] = [*self.own]
        for action in self._actions:
            names += [
                option[2:]
                for option in action.option_strings
                if option.startswith("--") and not option.endswith("+")
            ]
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    names += parser.options() if isinstance(parser, Parser) else []
        return list(dict.fromkeys(names))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the mistake as one sentence to standard error and exit with status 2."""
        exit_with_error(clarify(message, self.options()))

    def format_help(self, *args: Any) -> str:
        """Return the help of a subcommand: each option's first sentence and default."""
        if not any(action.dest.startswith("trainer") for action in self._actions):
            text: str = super().format_help(*args)
            return text
        lines = [
            f"usage: {self.prog.replace(' [options]', '')}"
            " [-c RECIPE] [-c OVERLAY] ... [--OPTION VALUE] ...",
            "",
            f"{_first(self.description or '').rstrip('.')}.",
            "",
        ]
        for group in self._action_groups:
            actions = [
                action
                for action in group._group_actions
                if action.help is not argparse.SUPPRESS and not action.dest.endswith(".help")
            ]
            if actions:
                lines += [
                    f"{_first(group.title or '').rstrip(':')}:",
                    *(line for action in actions for line in self._describe(action)),
                    "",
                ]
        lines.append(
            "Options of one class: --data.help, --model.network.help, --pruning.pruner.help CLASS. "
            "All values: --print_config."
        )
        return "\n".join(lines) + "\n"

    def _describe(self, action: argparse.Action) -> list[str]:
        names = [option for option in action.option_strings if not option.endswith("+")]
        choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
        about = _first(str(action.help or "")).rstrip(".")
        option = action.dest
        if known := classes(option):
            about += (
                f": {', '.join(_names(known))}, or a class path"
                if option in PACKAGE_MODULES
                else ""
            )
        default = action.default
        if (
            option in PACKAGE_MODULES
            or default in (None, argparse.SUPPRESS, "==SUPPRESS==")
            or isinstance(default, dict)
            or callable(default)
        ):
            stated = ""
        else:
            stated = f" (default: {str(default).lower() if isinstance(default, bool) else default})"
        head = f"  {', '.join(names)} {choices}".rstrip()
        body = textwrap.wrap(f"{about}{stated}", 100 - 36)
        if len(head) < 35 and body:
            return [f"{head:<36}{body[0]}", *(" " * 36 + line for line in body[1:])]
        return [head, *(" " * 36 + line for line in body)]


def _first(text: str) -> str:
    """Return the first sentence of a docstring or help text, without markup."""
    plain = " ".join(text.replace("``", "").replace("%%", "%").split())
    plain = re.sub(r"\s*\(type: .*$", "", plain)
    return re.split(r"(?<=[a-z\])0-9\"'])\. ", plain, maxsplit=1)[0]
