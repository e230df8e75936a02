"""Locate recipes and overlays by name, from any working directory."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

__all__ = ["find_recipe", "overlays", "recipe_folder"]


def recipe_folder() -> Path:
    """Return the folder of the recipes: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_recipe(name: str) -> Path:
    """Return the configuration file for ``-c NAME``.

    Args:
        name: Path of a file, or name of a recipe (``mnist_fc``) or overlay (``pruners/synflow``)
            of this package.

    Raises:
        FileNotFoundError: If there is no such file or recipe; the message gives the closest name.
    """
    if Path(name).is_file():
        return Path(name)
    folder = recipe_folder()
    known = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.yaml"))
    }
    wanted = name.removesuffix(".yaml").removeprefix("configs/")
    if wanted in known:
        return known[wanted]
    near = get_close_matches(wanted, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    raise FileNotFoundError(f"no recipe {name!r}: neither a file nor one of ours; {hint}")


def overlays() -> dict[str, dict[str, Any]]:
    """Return the content of each overlay in ``configs/pruners``, by name."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return {
        path.stem: yaml.load(path.read_text(), loader)
        for path in sorted((recipe_folder() / "pruners").glob("*.yaml"))
    }
