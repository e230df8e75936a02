"""Parser for the options of subcommands that are not LightningCLI's; it does not import torch."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

__all__ = ["Options", "exit_with_error", "near"]

_KINDS = {"int": "a whole number", "float": "a number", "Path": "a path"}


def exit_with_error(message: str, status: int = 2) -> NoReturn:
    """Print an error message of one sentence to standard error and exit.

    Args:
        message: The sentence.
        status: Exit status; 2 stands for a mistake in the options.
    """
    print(f"synflow_pl: error: {message}", file=sys.stderr)
    raise SystemExit(status)


def near(wrong: str, known: Sequence[str]) -> str:
    """Return "; did you mean NAME?" with the closest known name, or "" if none is close."""
    close = [] if wrong.isdigit() else get_close_matches(wrong, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


class Options(argparse.ArgumentParser):
    """Argument parser with errors of one sentence and exit status 2.

    Options cannot be abbreviated, and an error about an unknown option suggests the closest one.

    Args:
        name: Name of the subcommand.
        options: Further arguments of ``argparse.ArgumentParser``.
    """

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(f"synflow_pl {name}", allow_abbrev=False, **options)
        self._typed: list[str] = []

    @property
    def names(self) -> list[str]:
        """Names of all options, without leading dashes."""
        return [
            option[2:]
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--")
        ]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the known options, and remember the command line for error messages."""
        self._typed = list(args if args is not None else sys.argv[1:])
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the mistake as one sentence to standard error and exit with status 2."""
        exit_with_error(self._clear(message))

    def _clear(self, message: str) -> str:
        """Return argparse's message as one sentence."""
        if unknown := re.search(r"unrecognized arguments: (.*)", message):
            first = unknown[1].split()[0].partition("=")[0].lstrip("-")
            return f"there is no option {first}{near(first, self.names) or '; see --help'}"
        if missing := re.search(r"arguments are required: (\S+?)(?:,|$)", message):
            name = missing[1].lstrip("-")
            typed = [arg[2:].partition("=")[0] for arg in self._typed if arg.startswith("--")]
            if wrong := get_close_matches(
                name, [other for other in typed if other not in self.names], n=1, cutoff=0.6
            ):
                return f"there is no option {wrong[0]}; did you mean {name}?"
            return f"{message} ({self._help_of(name)})"
        if invalid := re.search(r"argument ([^:]+): invalid (\w+) value: '(.*)'", message):
            kind = _KINDS.get(invalid[2], f"a {invalid[2]}")
            return f"{self._long(invalid[1])}: {invalid[3]!r} is not {kind}"
        if choice := re.search(
            r"argument ([^:]+): invalid choice: '(.*)' \(choose from (.*)\)", message
        ):
            choices = [each.strip(" '") for each in choice[3].split(",")]
            return f"{message}{near(choice[2], choices)}"
        return " ".join(message.split())

    def _long(self, name: str) -> str:
        return name.split("/")[-1].lstrip("-")

    def _help_of(self, name: str) -> str:
        action = next(
            each
            for each in self._actions
            if name in (each.dest, each.metavar, *(o[2:] for o in each.option_strings))
        )
        return str(action.help)
