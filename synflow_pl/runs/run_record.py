"""Read the options and results of a run from its files.

The files are ``config.yaml``, ``metrics.csv`` and ``diagnosis.json``.
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
    "changed_test_options",
    "comparison_keys",
    "find_runs",
    "flatten",
    "read_run",
]

# Two runs are comparable if they agree in the network, the training and the data. Options of the
# data that only choose folders or what is logged do not count.
_NOT_OF_DATA = {"data_dir", "pipeline", "num_workers", "predict_dir", "test_each_epoch"}
_OF_TRAINER = (
    "max_epochs",
    "max_steps",
    "limit_train_batches",
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
)
# Options of the data that do not affect a test accuracy.
_NOT_OF_TEST = _NOT_OF_DATA | {"batch_size", "val_size", "augment", "validate_on_test"}
# Options of the pruning that are an axis of the report or do not change the kind of pruning.
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
    """Raised for a folder that cannot be reported; the message gives the reason."""


class IntermediateLevel(SkippedRun):
    """Raised for a level of a multi-shot pruning before the last one, which is reported instead."""


@dataclass(frozen=True)
class Accuracies:
    """Test accuracies of one run, in [0, 1].

    An accuracy is ``None`` if it was not measured, or not on the whole test set.

    Attributes:
        final: Accuracy after the last epoch.
        at_best_validation: Accuracy at the first of the epochs with the best validation accuracy.
        best_on_test: Best accuracy of all epochs, chosen on the test set.
    """

    final: float | None
    at_best_validation: float | None
    best_on_test: float | None


@dataclass(frozen=True)
class Layer:
    """Number of weights of one layer.

    Attributes:
        name: Name of the layer.
        total: Weights of the layer.
        kept: Weights that were kept.
    """

    name: str
    total: int
    kept: int


@dataclass(frozen=True)
class RunRecord:
    """Options and results of one run.

    Attributes:
        folder: Folder of the run.
        setting: Options that two comparable runs have in common, by full name.
        data: Class name of the data module.
        network: Short name of the network.
        pruning: Options of the pruning except density and seed, by full name; repetitions of a run
            have them in common.
        pruner: Name of the pruner: that of its overlay if one matches.
        density: Density that was requested, in (0, 1]; the density reached if a number of weights
            was requested or the masks came from a file.
        seed: Seed of the run.
        accuracies: Test accuracies.
        kept: Density reached, in [0, 1].
        effective_density: Effective density, in [0, 1], or ``None`` if unknown.
        flops: FLOPs of one image in the pruned network, or ``None`` if unknown.
        whole_flops: FLOPs of one image in the dense network, or ``None`` if unknown.
        connected: Whether a path of kept weights leads from input to output.
        layers: Weights per layer; empty if unknown.
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
    connected: bool
    layers: tuple[Layer, ...] = field(default=())


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


def read_run(folder: Path, overlays: Mapping[str, Mapping[str, Any]]) -> RunRecord:
    """Read one run.

    Args:
        folder: Folder of the run.
        overlays: Contents of the files of ``configs/pruners``, by name; pruners are named after
            them.

    Raises:
        SkippedRun: If the run is unfinished, damaged, or not a run of synflow_pl.
        IntermediateLevel: If the run is a level of a multi-shot pruning before the last one.
    """
    try:
        return _read(folder, overlays)
    except SkippedRun:
        raise
    # Files that anyone can edit can be wrong in any way, and the other runs are still reported.
    except Exception as error:
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
    setting, own = comparison_keys(config)
    pruning = config["pruning"]
    diagnosis, control = _json(folder / "diagnosis.json", *_OF_DIAGNOSIS), _json(folder / NARROWER)
    if diagnosis is None and (
        pruning.get("pruner") is not None or pruning.get("masks_path") is not None
    ):
        raise SkippedRun(
            "there is no diagnosis.json in it, which says what was kept; it was made by an older"
            " version, or is broken"
        )
    name, density = _pruner_label(pruning, overlays), _density(pruning, diagnosis)
    if level is not None:
        own["levels"], own["rewind"] = level["levels"], level["rewind"]
        name = f"{name}, {level['levels']} level{'s' * (level['levels'] > 1)}"
    if control is not None:
        own["narrower"] = control["like"]
        name, density = (
            f"narrower, as many {'weights' if control['like'] == 'parameters' else 'FLOPs'}",
            float(control["density"]),
        )
        setting[f"network.init_args.{control['argument']}"] = control["whole_width"]
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
        kept=float(diagnosis["density"])
        if diagnosis
        else control["weights"] / control["whole_weights"]
        if control
        else 1.0,
        effective_density=float(diagnosis["effective_density"])
        if diagnosis
        else control["weights"] / control["whole_weights"]
        if control
        else 1.0,
        flops=int(diagnosis["sparse_flops"])
        if diagnosis
        else control["flops"]
        if control
        else None,
        whole_flops=int(diagnosis["flops"])
        if diagnosis
        else control["whole_flops"]
        if control
        else None,
        connected=bool(diagnosis["alive"]) if diagnosis else True,
        layers=tuple(Layer(x["name"], int(x["total"]), int(x["kept"])) for x in diagnosis["layers"])
        if diagnosis
        else (),
    )


def _density(pruning: Mapping[str, Any], diagnosis: Mapping[str, Any] | None) -> float:
    """Return the density by which repetitions of a run are grouped.

    This is the requested density, or the one reached if a number of weights was requested or the
    masks came from a file, for which the requested density has no effect.
    """
    if diagnosis is None:
        return 1.0
    requested = (
        None
        if pruning.get("masks_path")
        else pruning.get("effective_density") or pruning.get("density")
    )
    return float(diagnosis["density"] if requested is None else requested)


def comparison_keys(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the attributes ``setting`` and ``pruning`` of a run with the given configuration.

    Args:
        config: Content of ``config.yaml``.
    """
    data, trainer = config["data"], config.get("trainer") or {}
    setting = {
        **flatten(config["model"]),
        "data": data["class_path"],
        **{
            f"data.{key}": value
            for key, value in (data.get("init_args") or {}).items()
            if key not in _NOT_OF_DATA
        },
        **{f"trainer.{key}": trainer.get(key) for key in _OF_TRAINER},
    }
    return setting, flatten(
        {
            key: value
            for key, value in _with_default_rounds(config["pruning"]).items()
            if key not in _NOT_OF_PRUNER
        }
    )


def _with_default_rounds(pruning: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of a pruning with the default number of rounds filled in.

    The default is that of the pruner's class if the class is part of synflow_pl; torch is imported
    only then. Options that an older run does not have get their default.
    """
    pruning = {"fresh_batches": False, "margin": 0.99, **pruning}
    pruner = pruning.get("pruner")
    if pruner is None or pruning.get("rounds") is not None:
        return pruning
    # A wrapper has the number of rounds of the pruner that it wraps.
    while isinstance(inner := (pruner.get("init_args") or {}).get("pruner"), Mapping):
        pruner = inner
    room, _, name = pruner["class_path"].rpartition(".")
    return (
        {**pruning, "rounds": getattr(import_module(room), name).rounds}
        if room == "synflow_pl.pruners"
        else pruning
    )


def _config(folder: Path) -> dict[str, Any]:
    """Return the content of ``config.yaml`` after checking that synflow_pl wrote it.

    Raises:
        SkippedRun: If the file is missing, damaged, or of another program.
    """
    if not (folder / CONFIG).is_file():
        raise SkippedRun(
            f"there is no {CONFIG} in it: it was stopped before it began, or is not a run"
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
            f"it is not a run of synflow_pl: its {CONFIG} has no model.network, data, pruning and"
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
    """Return the content of a JSON file, or ``None`` if there is no file.

    Args:
        path: Path of the file.
        *keys: Keys that the content must have.

    Raises:
        SkippedRun: If the file is damaged or lacks a key.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise SkippedRun(f"its {path.name} cannot be read: {error}") from error
    if missing := [key for key in keys if not isinstance(content, dict) or key not in content]:
        raise SkippedRun(f"it is broken: there is no {missing[0]} in its {path.name}")
    return content


def _accuracies(folder: Path, trainer: Mapping[str, Any], validated_on_test: bool) -> Accuracies:
    if not (folder / "metrics.csv").is_file():
        raise SkippedRun("it is unfinished: there is no metrics.csv in it")
    try:
        state = progress(folder)
    except ValueError as error:
        raise SkippedRun(str(error)) from error
    if not ended(trainer, state):
        trained = (
            f"after {state.epochs} epochs" if state.epochs else "before the end of its first epoch"
        )
        on = f"synflow_pl fit -c {folder / CONFIG} --ckpt_path {folder}"
        raise SkippedRun(f"it is unfinished: stopped {trained}; resume it with {on}")
    if state.final is None:
        raise SkippedRun(f"it is not tested yet: synflow_pl test --ckpt_path {folder}")
    if state.part or (not state.tests and not _whole(trainer.get("limit_test_batches"))):
        return Accuracies(None, None, None)
    if validated_on_test:
        return Accuracies(state.final, None, max(state.validation.values(), default=None))
    best = max(sorted(state.validation), key=state.validation.__getitem__, default=None)
    test = state.test_each_epoch
    return Accuracies(
        state.final, test.get(best) if best is not None else None, max(test.values(), default=None)
    )


def changed_test_options(run: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    """Return the options for which a test accuracy is not that of the run, as ``name=value``.

    These are options of the network and the data that differ, and a limit to a part of the test
    set.

    Args:
        run: Configuration of the run.
        test: Configuration of the test.

    Returns:
        The options, separated by commas; empty if there are none.
    """
    was, now = ({"network": x["model"]["network"], "data": x["data"]} for x in (run, test))
    before, after = flatten(was), flatten(now)
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
    """Return whether a limit of batches is no limit: 1.0 is all batches, 1 is one batch."""
    return limit is None or (isinstance(limit, float) and limit == 1)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options by their full names: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``.

    Args:
        nested: Options, nested by section.
        prefix: Text that is put before each name.
    """
    options: dict[str, Any] = {}
    for key, value in nested.items():
        options |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return options


def _pruner_label(pruning: Mapping[str, Any], overlays: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the overlay that agrees with a pruning in most options, or else the pruner's class."""
    if pruning.get("masks_path") is not None:
        return "masks from a file"
    if pruning.get("pruner") is None:
        return "dense"
    given = flatten(_with_default_rounds(pruning))
    agreeing = [
        (len(options), name)
        for name, options in (
            (name, flatten(overlay["pruning"]))
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
    """Return the class name of a network, with its ``name`` or its depth if it has one."""
    arguments = network.get("init_args") or {}
    short: str = network["class_path"].rpartition(".")[2]
    if "name" in arguments:
        return f"{short} {arguments['name']}"
    return (
        f"{short}-{arguments['depth']}"
        if short not in ("FC", "Conv") and "depth" in arguments
        else short
    )
