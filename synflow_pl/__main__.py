"""``python -m synflow_pl``: dispatch, before anything heavy is imported."""

from __future__ import annotations

import sys
from importlib import import_module

from synflow_pl.cli import COMMANDS


def main() -> None:
    """Run the command line; the console script ``synflow_pl`` comes here too."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from synflow_pl import __version__

        print(f"synflow_pl {__version__}")
        return
    # `python -m` finds a class in the working directory; the console script shall too.
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")
    # `report` needs neither torch nor Lightning, and starts at once.
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        module, function = COMMANDS[sys.argv[1]]
        getattr(import_module(f"synflow_pl.cli.{module}"), function)(sys.argv[2:])
        return
    if sys.argv[1:2] == ["predict"] and any(arg.endswith((".safetensors", ".onnx", ".pt2")) for arg in sys.argv[2:]):
        from synflow_pl.cli.predictions import predict_exported

        predict_exported(sys.argv[2:])
        return
    from synflow_pl.cli.main import run

    run(sys.argv[1:])


if __name__ == "__main__":
    main()
