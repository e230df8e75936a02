"""Resolve the names of recipes and classes on a command line before it is parsed."""

from __future__ import annotations

from importlib import import_module

from synflow_pl.cli import EVALUATIONS
from synflow_pl.cli.errors import PACKAGE_MODULES, exit_with_error, refuse_function
from synflow_pl.cli.recipes import find_recipe
from synflow_pl.runs import CONFIG, find_run_folder
from synflow_pl.training import find_checkpoint

__all__ = ["resolve", "resolve_or_exit"]


def resolve_or_exit(args: list[str]) -> list[str]:
    """Return a command line with the full path of every recipe and every class of this package.

    A mistake is one sentence on standard error and exit status 2.

    Args:
        args: Arguments after ``synflow_pl`` on the command line.
    """
    try:
        return resolve(args)
    except (FileNotFoundError, ValueError) as error:
        exit_with_error(str(error))


def resolve(args: list[str]) -> list[str]:
    """Resolve recipes and classes by name, and add a run's config.yaml to its evaluation.

    Files are moved before all options, in their own order: of two settings the parser keeps the
    later, so options override files wherever they are typed. A file before the subcommand stays
    there.

    Args:
        args: Arguments after ``synflow_pl`` on the command line.

    Raises:
        FileNotFoundError: If there is no such recipe or checkpoint.
        ValueError: If the network is given as a function.
    """
    prepared: list[str] = []
    before: list[str] = []
    files: list[str] = []
    checkpoint = None
    index = 0
    while index < len(args):
        if args[index].startswith("-c") and args[index][2:3] not in ("", "="):
            # argparse allows "-cNAME".
            args = [*args[:index], "-c", args[index][2:], *args[index + 1 :]]
        option, equals, value = args[index].partition("=")
        if not before and not option.startswith("-"):
            before = [*files, option]
            files = []
            index += 1
            continue
        if option in ("-c", "--config", "--ckpt_path") and not equals and index + 1 < len(args):
            index += 1
            value = args[index]
        if option in ("-c", "--config") and value:
            files += ["--config", str(find_recipe(value))]
        elif option == "--ckpt_path" and value:
            checkpoint = value
            prepared += ["--ckpt_path", value]
        elif (kind := option.removeprefix("--").removesuffix(".help")) in PACKAGE_MODULES:
            if not equals and index + 1 < len(args):
                index += 1
                value = args[index]
            if option == "--model.network":
                refuse_function(value)
            prepared += [option, _full_path(PACKAGE_MODULES[kind], value)]
        else:
            prepared.append(args[index])
        index += 1
    if not files and checkpoint is not None and len(before) == 1 and before[0] in EVALUATIONS:
        folder = find_run_folder(find_checkpoint(checkpoint))
        if folder is not None:
            files = ["--config", str(folder / CONFIG)]
    return [*before, *files, *prepared]


def _full_path(module: str, name: str) -> str:
    """Return the full path of a class of this package, or ``name`` if there is no such class.

    A bare name could otherwise be ambiguous: torchvision has a VGG too.
    """
    return f"{module}.{name}" if name in import_module(module).__all__ else name
