"""Find the runs in folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from synflow_pl.runs.run_folder import CONFIG

__all__ = ["find_runs"]


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders in the given paths.

    Args:
        paths: Runs, or folders that contain runs at any depth.

    Returns:
        Paths of the runs, each once.

    Raises:
        FileNotFoundError: If a path is not a folder.
    """
    runs: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(
                f"there is no folder {str(path)!r}; give a run, a folder of runs such as"
                " lightning_logs, or a sweep's"
            )
        runs |= dict.fromkeys([path] if _is_run(path) else _find_within(path))
    return list(runs)


def _is_run(folder: Path) -> bool:
    return any(
        (folder / name).exists() for name in (CONFIG, "metrics.csv", "checkpoints", "hparams.yaml")
    )


def _find_within(folder: Path) -> Iterator[Path]:
    for child in sorted(
        child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")
    ):
        # Every folder in lightning_logs counts as a run, so that failed ones are reported too.
        if _is_run(child) or folder.name == "lightning_logs":
            yield child
        else:
            yield from _find_within(child)
