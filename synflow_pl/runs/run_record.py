"""Reading a run: what it was, and what came of it, from ``config.yaml``, ``metrics.csv`` and
``diagnosis.json`` alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from synflow_pl.runs.progress import configuration, ended, progress
from synflow_pl.runs.run_folder import CONFIG
from synflow_pl.runs.sweep_grid import FAILED, NARROWER

__all__ = [
    "Accuracies",
    "IntermediateLevel",
    "Layer",
    "RunRecord",
    "SkippedRun",
    "compared",
    "find_runs",
    "flat",
    "read",
    "untested",
]

# What makes two runs comparable: the network, how it is trained, and on what. Where files lie and
# what is shown makes no difference.
_NOT_OF_DATA = {"data_dir", "pipeline", "num_workers", "predict_dir", "test_each_epoch"}
_OF_TRAINER = (
    "max_epochs", "max_steps", "limit_train_batches", "precision", "accumulate_grad_batches", "gradient_clip_val",
)  # fmt: skip
# Of data, what a test does not depend on either.
_NOT_OF_TEST = _NOT_OF_DATA | {"batch_size", "val_size", "augment", "validate_on_test"}
# Of a pruning, what is an axis of the report, or says only where from.
_NOT_OF_PRUNER = {
    "density",
    "num_kept",
    "effective_density",
    "score_from",
    "on_collapse",
    "network",
    "input_shape",
}
_OF_DIAGNOSIS = ("density", "effective_density", "flops", "sparse_flops", "alive", "layers")


class SkippedRun(ValueError):
    """Why a folder is not reported, without its name."""


class IntermediateLevel(SkippedRun):
    """It is a level of a multi-shot pruning that is not the last, which is the one that is
    reported.
    """


@dataclass(frozen=True)
class Accuracies:
    """Test accuracies of one run, in [0, 1]: after the last epoch, at the epoch with the best
    validation accuracy (the first of them), and the best that any epoch had on the test set.
    ``None`` where it was not measured, or not on the whole test set.
    """

    final: float | None
    at_best_validation: float | None
    best_on_test: float | None


@dataclass(frozen=True)
class Layer:
    """A layer's name, its weights, and how many of them were kept."""

    name: str
    total: int
    kept: int


@dataclass(frozen=True)
class RunRecord:
    """One run.

    ``setting`` is what has to be the same for two runs to be compared, ``pruning`` what has to be
    for them to be repetitions of each other but for density and seed; both are flat, by option.
    ``density`` is the one asked for, by which repetitions are found, or where weights were counted
    or masks were given, the one that came of it; ``kept``, ``effective_density`` and FLOPs (of one
    image) are what came of it, ``None`` where they are not known.
    """

    folder: Path
    setting: Mapping[str, Any]
    data: str
    network: str
    pruning: Mapping[str, Any]
    pruner: str
    density: float
    seed: int
    accuracies: Accuracies
    kept: float
    effective_density: float | None
    flops: int | None
    whole_flops: int | None
    alive: bool
    layers: tuple[Layer, ...] = field(default=())


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The runs that are meant: folders themselves, and what lies in folders of runs.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(
                f"there is no folder {str(path)!r}; give a run, a folder of runs such as"
                " lightning_logs, or a sweep's"
            )
        found |= dict.fromkeys([path] if _looks_like_a_run(path) else _within(path))
    return list(found)


def _looks_like_a_run(folder: Path) -> bool:
    return any(
        (folder / name).exists() for name in (CONFIG, "metrics.csv", "checkpoints", "hparams.yaml")
    )


def _within(folder: Path) -> Iterator[Path]:
    for child in sorted(
        child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")
    ):
        # Whatever lies in lightning_logs was meant to be a run, even if nothing came of it.
        if _looks_like_a_run(child) or folder.name == "lightning_logs":
            yield child
        else:
            yield from _within(child)


def read(folder: Path, overlays: Mapping[str, Mapping[str, Any]]) -> RunRecord:
    """Read one run.

    Args:
        folder: of the run.
        overlays: what the files of ``configs/pruners`` hold, by name: pruners are called after
            them.

    Raises:
        LeftOut: if it is unfinished, broken, or not one of ours.
        Between: if it is a level of a multi-shot pruning that is not the last.
    """
    try:
        return _read(folder, overlays)
    except SkippedRun:
        raise
    except Exception as error:  # what may be wrong with files that anyone can write has no bound, and the others are to be reported
        raise SkippedRun(
            f"it is broken: {' '.join(f'{type(error).__name__}: {error}'.split())}"
        ) from error


def _read(folder: Path, overlays: Mapping[str, Mapping[str, Any]]) -> RunRecord:
    if (folder / FAILED).is_file():
        raise SkippedRun(f"it failed: {(folder / FAILED).read_text(errors='replace').strip()}")
    config = _config(folder)
    level = _json(folder / "level.json", "level", "levels", "rewind")
    if level is not None and level["level"] < level["levels"]:
        raise IntermediateLevel(
            f"it is level {level['level']} of {level['levels']}, and the last one is reported"
        )
    trainer = config.get("trainer") or {}
    accuracies = _accuracies(
        folder, trainer, bool((config["data"].get("init_args") or {}).get("validate_on_test"))
    )
    setting, own = compared(config)
    pruning = config["pruning"]
    told, small = _json(folder / "diagnosis.json", *_OF_DIAGNOSIS), _json(folder / NARROWER)
    if told is None and (
        pruning.get("pruner") is not None or pruning.get("masks_path") is not None
    ):
        raise SkippedRun(
            "there is no diagnosis.json in it, which says what was kept; it was made by an older"
            " version, or is broken"
        )
    name, density = _named(pruning, overlays), _density(pruning, told)
    if level is not None:
        own["levels"], own["rewind"] = level["levels"], level["rewind"]
        name = f"{name}, {level['levels']} level{'s' * (level['levels'] > 1)}"
    if small is not None:
        own["narrower"] = small["like"]
        name, density = (
            f"narrower, as many {'weights' if small['like'] == 'parameters' else 'FLOPs'}",
            float(small["density"]),
        )
        setting[f"network.init_args.{small['argument']}"] = small["whole_width"]
    return RunRecord(
        folder=folder,
        setting=setting,
        data=config["data"]["class_path"].rpartition(".")[2],
        network=_network(config["model"]["network"]),
        pruning=own,
        pruner=name,
        density=density,
        seed=config["seed_everything"],
        accuracies=accuracies,
        kept=float(told["density"])
        if told
        else small["weights"] / small["whole_weights"]
        if small
        else 1.0,
        effective_density=float(told["effective_density"])
        if told
        else small["weights"] / small["whole_weights"]
        if small
        else 1.0,
        flops=int(told["sparse_flops"]) if told else small["flops"] if small else None,
        whole_flops=int(told["flops"]) if told else small["whole_flops"] if small else None,
        alive=bool(told["alive"]) if told else True,
        layers=tuple(Layer(x["name"], int(x["total"]), int(x["kept"])) for x in told["layers"])
        if told
        else (),
    )


def _density(pruning: Mapping[str, Any], told: Mapping[str, Any] | None) -> float:
    """The density asked for; with masks from a file, which is trained with whatever the options
    say, and with ``kept`` the one had.
    """
    if told is None:
        return 1.0
    asked = (
        None
        if pruning.get("masks_path")
        else pruning.get("effective_density") or pruning.get("density")
    )
    return float(told["density"] if asked is None else asked)


def compared(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ``setting`` and the ``pruning`` of a run with this configuration."""
    data, trainer = config["data"], config.get("trainer") or {}
    setting = {
        **flat(config["model"]),
        "data": data["class_path"],
        **{
            f"data.{key}": value
            for key, value in (data.get("init_args") or {}).items()
            if key not in _NOT_OF_DATA
        },
        **{f"trainer.{key}": trainer.get(key) for key in _OF_TRAINER},
    }
    return setting, flat(
        {
            key: value
            for key, value in _spelt_out(config["pruning"]).items()
            if key not in _NOT_OF_PRUNER
        }
    )


def _spelt_out(pruning: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the number of rounds that leaving it out means, where the pruner is one of ours; only
    then is torch imported.

    Runs from before there was an option have its default.
    """
    pruning = {"fresh_batches": False, **pruning}
    pruner = pruning.get("pruner")
    if pruner is None or pruning.get("rounds") is not None:
        return pruning
    while isinstance(
        inner := (pruner.get("init_args") or {}).get("pruner"), Mapping
    ):  # it goes around another, whose rounds it has
        pruner = inner
    room, _, name = pruner["class_path"].rpartition(".")
    return (
        {**pruning, "rounds": getattr(import_module(room), name).rounds}
        if room == "synflow_pl.pruners"
        else pruning
    )


def _config(folder: Path) -> dict[str, Any]:
    """The configuration, seen to be one of ours."""
    if not (folder / CONFIG).is_file():
        raise SkippedRun(
            f"there is no {CONFIG} in it: it was stopped before it began, or is no run"
        )
    try:
        config: dict[str, Any] = configuration(folder)
    except ValueError as error:
        raise SkippedRun(str(error)) from error
    shaped = isinstance(config, dict) and all(
        isinstance(config.get(key), dict) for key in ("model", "data", "pruning")
    )
    if not (
        shaped
        and "network" in config["model"]
        and "class_path" in config["data"]
        and isinstance(config.get("seed_everything"), int)
    ):
        raise SkippedRun(
            f"it is no run of synflow_pl: its {CONFIG} has no model.network, data, pruning and"
            " seed_everything"
        )
    for name, part in (
        ("model.network", config["model"]["network"]),
        ("pruning.pruner", config["pruning"].get("pruner") or {}),
    ):
        if part != {} and not (isinstance(part, dict) and isinstance(part.get("class_path"), str)):
            raise SkippedRun(f"it is broken: {name} names no class (class_path) in its {CONFIG}")
    return config


def _json(path: Path, *keys: str) -> Any:
    """What it holds, with these keys; ``None`` if it is not there."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise SkippedRun(f"its {path.name} cannot be read: {error}") from error
    if missing := [key for key in keys if not isinstance(found, dict) or key not in found]:
        raise SkippedRun(f"it is broken: there is no {missing[0]} in its {path.name}")
    return found


def _accuracies(folder: Path, trainer: Mapping[str, Any], validated_on_test: bool) -> Accuracies:
    if not (folder / "metrics.csv").is_file():
        raise SkippedRun("it is unfinished: there is no metrics.csv in it")
    try:
        told = progress(folder)
    except ValueError as error:
        raise SkippedRun(str(error)) from error
    if not ended(trainer, told):
        trained = (
            f"after {told.epochs} epochs" if told.epochs else "before its first epoch was over"
        )
        on = f"synflow_pl fit -c {folder / CONFIG} --ckpt_path {folder}"
        raise SkippedRun(f"it is unfinished: stopped {trained}; it goes on with {on}")
    if told.final is None:
        raise SkippedRun(f"it is not tested yet: synflow_pl test --ckpt_path {folder}")
    if told.part or (not told.tests and not _whole(trainer.get("limit_test_batches"))):
        return Accuracies(None, None, None)
    if validated_on_test:
        return Accuracies(told.final, None, max(told.validation.values(), default=None))
    best = max(sorted(told.validation), key=told.validation.__getitem__, default=None)
    test = told.test_each_epoch
    return Accuracies(
        told.final, test.get(best) if best is not None else None, max(test.values(), default=None)
    )


def untested(run: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    """Return the options of a test, as ``name=value``, for which its accuracy is not that of the
    run.

    These are options of the network and the data that differ, and a limit to a part of the test
    set.

    Args:
        run: configuration of the run.
        test: configuration that the run is tested with.
    """
    was, now = ({"network": x["model"]["network"], "data": x["data"]} for x in (run, test))
    before, after = flat(was), flat(now)
    names = [
        name
        for name in sorted(before.keys() | after.keys())
        if name.rpartition(".")[2] not in _NOT_OF_TEST
    ]
    different = [
        f"{name}={after.get(name)}" for name in names if before.get(name) != after.get(name)
    ]
    limit = (test.get("trainer") or {}).get("limit_test_batches")
    return ", ".join(different + ([] if _whole(limit) else [f"trainer.limit_test_batches={limit}"]))


def _whole(limit: Any) -> bool:
    """Return whether a limit of batches is none: 1.0 is everything, and 1 is one batch."""
    return limit is None or (isinstance(limit, float) and limit == 1)


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by their full names: {"a": {"b": 1}} is {"a.b": 1}."""
    options: dict[str, Any] = {}
    for key, value in nested.items():
        options |= (
            flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return options


def _named(pruning: Mapping[str, Any], overlays: Mapping[str, Mapping[str, Any]]) -> str:
    """The overlay that a pruning agrees with in most options, else the pruner's class."""
    if pruning.get("masks_path") is not None:
        return "masks from a file"
    if pruning.get("pruner") is None:
        return "dense"
    given = flat(_spelt_out(pruning))
    agreeing = [
        (len(options), name)
        for name, options in (
            (name, flat(overlay["pruning"]))
            for name, overlay in overlays.items()
            if "pruning" in overlay
        )
        if "pruner.class_path" in options
        and all(given.get(key) == value for key, value in options.items())
    ]
    named: str = (
        max(agreeing)[1] if agreeing else pruning["pruner"]["class_path"].rpartition(".")[2]
    )
    return named if pruning.get("sanity") is None else f"{named}, {pruning['sanity']}"


def _network(network: Mapping[str, Any]) -> str:
    """A network's class, with its depth, or with its name where that says more."""
    arguments = network.get("init_args") or {}
    short: str = network["class_path"].rpartition(".")[2]
    if "name" in arguments:
        return f"{short} {arguments['name']}"
    return (
        f"{short}-{arguments['depth']}"
        if short not in ("FC", "Conv") and "depth" in arguments
        else short
    )
