"""Dispatch the subcommands of ``python -m synflow_pl`` before torch or Lightning is imported."""

from __future__ import annotations

import os
import signal
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

from synflow_pl.cli import COMMANDS, TRAINER_COMMANDS
from synflow_pl.io import explain, storage_error


def main() -> None:
    """Run the command line; this is also the entry point of the console script ``synflow_pl``."""
    try:
        _dispatch()
    except KeyboardInterrupt:
        # Training has its own message when it is stopped; no other command can be resumed.
        _refuse("stopped by SIGINT", status=128 + signal.SIGINT)
    except Exception as error:
        cause = storage_error(error)
        if cause is None:
            raise
        # An OSError without an errno was raised by this package to explain the one behind it.
        ours = isinstance(error, OSError) and error.errno is None
        _refuse(explain(error if ours else cause), status=1)


def _dispatch() -> None:
    if sys.argv[1:] in (["--version"], ["-V"]):
        from synflow_pl import __version__

        print(f"synflow_pl {__version__}")
        return
    # `python -m` can import classes from the working directory, and so must the console script.
    # The path is absolute because the parser changes into the folder of each configuration file.
    if (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)
    _check_command(sys.argv[1:])
    # Each command's module is imported on demand: `report` needs neither torch nor Lightning.
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        module, function = COMMANDS[sys.argv[1]]
        getattr(import_module(f"synflow_pl.cli.{module}"), function)(sys.argv[2:])
        return
    if sys.argv[1:2] == ["predict"] and any(
        arg.endswith((".safetensors", ".onnx", ".pt2")) for arg in sys.argv[2:]
    ):
        from synflow_pl.cli.predictions import predict_exported

        predict_exported(sys.argv[2:])
        return
    from synflow_pl.cli.main import run

    run(sys.argv[1:])


def _check_command(args: list[str]) -> None:
    """Exit with an error that lists the subcommands if none, or an unknown one, is given."""
    names = sorted((*COMMANDS, *TRAINER_COMMANDS))
    if not args:
        _refuse(f"expected a subcommand; there are {', '.join(names)}")
    if not args[0].startswith("-") and args[0] not in names:
        near = get_close_matches(args[0].lower(), names, n=1)
        hint = f"did you mean {near[0]}? There" if near else "there"
        _refuse(f"there is no subcommand {args[0]!r}; {hint} are {', '.join(names)}")


def _refuse(message: str, status: int = 2) -> NoReturn:
    print(f"synflow_pl: error: {message}", file=sys.stderr)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
