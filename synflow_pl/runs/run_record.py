"""Read the options and results of a run from its files.

The files are ``config.yaml``, ``metrics.csv`` and ``diagnosis.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from synflow_pl.runs.run_files import (
    Accuracies,
    IntermediateLevel,
    SkippedRun,
    read_accuracies,
    read_config,
    read_json,
)
from synflow_pl.runs.run_options import NOT_OF_DATA, flatten
from synflow_pl.runs.sweep_grid import FAILED, NARROWER

__all__ = ["Layer", "RunRecord", "comparison_keys", "read_run"]

# Two runs are comparable if they agree in the network, the training and the data.
_OF_TRAINER = (
    "max_epochs",
    "max_steps",
    "limit_train_batches",
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
)
# Options of the pruning that are an axis of the report or do not change the kind of pruning.
_NOT_OF_PRUNER = {
    "density",
    "num_kept",
    "effective_density",
    "flops",
    "parameters",
    "latency",
    "score_from",
    "on_collapse",
    "network",
    "input_shape",
    "spectra",
}
# Budgets that are a fraction; ``density`` has an effect only if there is no other.
_FRACTIONS = ("effective_density", "flops", "parameters", "latency", "density")
_OF_DIAGNOSIS = ("density", "effective_density", "flops", "sparse_flops", "alive", "layers")


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
    config = read_config(folder)
    level = read_json(folder / "level.json", "level", "levels", "rewind")
    if level is not None and level["level"] < level["levels"]:
        raise IntermediateLevel(
            f"it is level {level['level']} of {level['levels']}, and the last one is reported"
        )
    trainer = config.get("trainer") or {}
    accuracies = read_accuracies(
        folder, trainer, bool((config["data"].get("init_args") or {}).get("validate_on_test"))
    )
    setting, own = comparison_keys(config)
    pruning = config["pruning"]
    diagnosis, control = (
        read_json(folder / "diagnosis.json", *_OF_DIAGNOSIS),
        read_json(folder / NARROWER),
    )
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
        **_sizes(diagnosis, control),
    )


def _sizes(
    diagnosis: Mapping[str, Any] | None, control: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the attributes of a record about the size of the network.

    Args:
        diagnosis: Content of ``diagnosis.json``, if the run was pruned.
        control: Content of ``narrower.json``, if the run is one of a narrower network.
    """
    if diagnosis:
        return {
            "kept": float(diagnosis["density"]),
            "effective_density": float(diagnosis["effective_density"]),
            "flops": int(diagnosis["sparse_flops"]),
            "whole_flops": int(diagnosis["flops"]),
            "connected": bool(diagnosis["alive"]),
            "layers": tuple(
                Layer(x["name"], int(x["total"]), int(x["kept"])) for x in diagnosis["layers"]
            ),
        }
    kept = control["weights"] / control["whole_weights"] if control else 1.0
    return {
        "kept": kept,
        "effective_density": kept,
        "flops": control["flops"] if control else None,
        "whole_flops": control["whole_flops"] if control else None,
        "connected": True,
    }


def _density(pruning: Mapping[str, Any], diagnosis: Mapping[str, Any] | None) -> float:
    """Return the density by which repetitions of a run are grouped.

    This is the requested density, or the requested fraction of FLOPs or parameters, or the density
    reached if none was requested or the masks came from a file, for which it has no effect.
    """
    if diagnosis is None:
        return 1.0
    requested = (
        None
        if pruning.get("masks_path")
        else next((pruning[name] for name in _FRACTIONS if pruning.get(name)), None)
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
            if key not in NOT_OF_DATA
        },
        **{f"trainer.{key}": trainer.get(key) for key in _OF_TRAINER},
    }
    pruning = config["pruning"]
    limited = [name for name in ("flops", "parameters", "latency") if pruning.get(name) is not None]
    given = _with_default_rounds(pruning)
    # Fixed numbers of rounds have no margin.
    unused = _NOT_OF_PRUNER if given.get("rounds") == "auto" else {*_NOT_OF_PRUNER, "margin"}
    kept = {key: value for key, value in given.items() if key not in unused}
    return setting, flatten({**kept, **({"budget": limited[0]} if limited else {})})


def _with_default_rounds(pruning: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of a pruning with the default number of rounds filled in.

    The default is that of the pruner's class if the class is part of synflow_pl; torch is imported
    only then. Options that an older run does not have get their default.
    """
    pruning = {
        "fresh_batches": False,
        "margin": 0.99,
        "granularity": "weight",
        "group_score": "sum",
        **pruning,
    }
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
