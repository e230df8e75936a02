"""Check that a recipe, which may come from a stranger, writes only into folders its user chose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

__all__ = ["check_output_paths"]


def check_output_paths(trainer: Namespace, args: Sequence[str]) -> None:
    """Raise an error if a recipe would write outside the working directory.

    The folder ``--trainer.default_root_dir`` is allowed too, if the command line gives it, and so
    is any other folder that the command line gives.

    Args:
        trainer: Options of the trainer.
        args: The command line.

    Raises:
        ValueError: If a folder lies elsewhere; the message names the option and the folder.
    """
    given = {
        arg.removeprefix("--").partition("=")[0] for arg in args if arg.startswith("--trainer.")
    }
    root = trainer.get("default_root_dir")
    allowed = [Path.cwd().resolve()] + (
        [Path(root).resolve()] if root and "trainer.default_root_dir" in given else []
    )
    for option, folder in _folders(trainer):
        on_command_line = any(name.startswith(option) for name in given)
        if not on_command_line and not any(
            Path(folder).resolve().is_relative_to(inside) for inside in allowed
        ):
            raise ValueError(
                f"{option}: {folder!r} in a recipe lies outside of the folder that this is started "
                "in; if it is meant, give it on the command line"
            )


def _folders(trainer: Namespace) -> Iterator[tuple[str, str]]:
    if trainer.get("default_root_dir"):
        yield "trainer.default_root_dir", str(trainer.default_root_dir)
    for part in ("callbacks", "logger", "profiler"):
        held: Any = trainer.get(part)
        for each in held if isinstance(held, list) else [held]:
            arguments = each.get("init_args", {}) if isinstance(each, Namespace) else {}
            for name in ("dirpath", "save_dir"):
                if arguments.get(name):
                    yield f"trainer.{part}", str(arguments[name])
