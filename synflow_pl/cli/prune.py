"""Prune a network without training it; with ``--compare``, by several pruners side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import LightningDataModule, LightningModule, Trainer

from synflow_pl.cli.command import Command
from synflow_pl.cli.command_line import resolve_or_exit
from synflow_pl.cli.data_properties import attach_data
from synflow_pl.cli.errors import exit_with_error, import_class
from synflow_pl.cli.log_filters import quieten
from synflow_pl.cli.options import Options
from synflow_pl.cli.resume import write_config
from synflow_pl.cli.run_errors import exit_on_invalid_options
from synflow_pl.cli.run_names import run_name
from synflow_pl.cli.session import Session
from synflow_pl.diagnosis import Comparison, Diagnosis
from synflow_pl.figures import density_by_pruner, density_per_layer, layers_over_rounds
from synflow_pl.figures.style import MOST_LAYERS, save
from synflow_pl.runs import CONFIG, PRUNED, create_run_folder
from synflow_pl.training import PruneAtInit

__all__ = ["prune"]


def prune(args: list[str]) -> None:
    """Prune a network without training it, and report what was kept.

    Data is read only for a pruner that scores on data.

    Args:
        args: Options of ``fit``; ``--compare NAME NAME ...`` compares overlays of
            ``configs/pruners``.
    """
    own = Options("prune", add_help=False)
    own.add_argument("--compare", nargs="*")
    own.add_argument("--run")
    given, options = own.parse_known_args(args)
    quieten()
    if given.compare is None:
        name = ["--run", given.run] if given.run else []
        _prune(_command(resolve_or_exit(["prune", *options, *name]), own.names))
    else:
        _compare(given.compare, given.run, options, own.names)


class _Trainer(Trainer):
    """Trainer with a method that prunes without training."""

    def prune(self, model: LightningModule, datamodule: LightningDataModule | None = None) -> None:
        """Prune without training; --compare NAME NAME ... compares overlays of configs/pruners.

        Args:
            model: The classifier.
            datamodule: Data, for a pruner that scores on data or a network whose input's shape it
                does not say.
        """
        callback = pruning(self)
        model.to(self.strategy.root_device)
        if datamodule is not None:
            scores_on_data = callback.pruner is not None and callback.pruner.needs_batches
            attach_data(self, model, datamodule, read=scores_on_data)
        try:
            callback.prune(self, model)
        finally:
            for logger in self.loggers:
                logger.finalize("success")


def pruning(trainer: Trainer) -> PruneAtInit:
    """Return the trainer's :class:`~synflow_pl.training.PruneAtInit` callback."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, PruneAtInit))


def _command(args: list[str], own: Sequence[str] = (), pruner: str | None = None) -> Command:
    """Parse the command line of ``prune``, which has every option of ``fit``.

    Args:
        args: Resolved command line.
        own: Names of the command's own options, for suggestions in errors.
        pruner: Part of the run's name that identifies the pruner, if it is not the overlay's.
    """
    return Command(
        args,
        own,
        subcommands={"prune": {"model", "datamodule"}},
        trainer_class=_Trainer,
        name_run=partial(_run_name, pruner=pruner),
    )


def _run_name(options: Namespace, recipes: Sequence[Path], pruner: str | None) -> str:
    return run_name(options, recipes, pruner) + PRUNED


def _prune(command: Command, folder: Path | None = None) -> Session:
    """Prune a network, and write the masks and the diagnosis into the folder of the run.

    Args:
        command: Parsed command line of ``prune``.
        folder: Folder of the run, which is created; by default it is named by recipe, pruner,
            density and seed, and is printed at the end.
    """
    session = Session(command)
    with exit_on_invalid_options():
        session.build()
        _check_trainer(session.trainer)
        session.open_run(folder)
    session.execute(_run_and_report if folder is None else _run)
    return session


def _check_trainer(trainer: Trainer) -> None:
    """Raise an error if this trainer cannot prune without training."""
    if trainer.world_size > 1:
        raise ValueError(
            f"prune runs on one device, not {trainer.world_size}; add --trainer.devices 1"
        )
    pruning(trainer).check_now()


def _run(session: Session, **arguments: Any) -> None:
    """Prune, and write the diagnosis into the run's folder, even for a disconnected network."""
    if session.run_folder is not None:
        # Training from these masks is another run, which must not get this run's name.
        session.options["run"] = None
        write_config(session.run_folder, session.command.config_text)
    try:
        session.trainer.prune(**arguments)  # type: ignore[attr-defined]  # it is a _Trainer
    finally:
        callback = pruning(session.trainer)
        if callback.diagnosis is not None and session.run_folder is not None:
            _write_diagnosis(session.run_folder, callback.diagnosis, callback)


def _run_and_report(session: Session, **arguments: Any) -> None:
    """Prune, and print where the files lie, and the command that trains from the masks."""
    _run(session, **arguments)
    if session.run_folder is None:
        return
    folder = os.path.relpath(session.run_folder)
    print(
        f"\nThe run lies in  {folder}\n"
        f"Train it with    python -m synflow_pl fit -c {folder}/{CONFIG}"
        f" --pruning.masks_path {folder}/masks.safetensors"
    )


def _write_diagnosis(folder: Path, diagnosis: Diagnosis, callback: PruneAtInit) -> None:
    """Write the diagnosis as CSV and JSON, and its figures as PNG and PDF."""
    diagnosis.to_csv(folder / "diagnosis.csv")
    diagnosis.to_json(folder / "diagnosis.json")
    layers = diagnosis.layers
    if len(layers) > MOST_LAYERS:
        print(f"No pictures: of {len(layers)} layers, more than {MOST_LAYERS}, none could be read.")
        return
    names = [layer.name for layer in layers]
    effective = [layer.effective_density for layer in layers]
    densities = [layer.density for layer in layers]
    save(
        density_per_layer(names, densities, diagnosis.density, effective),
        folder / "density_per_layer",
    )
    if callback.survival is not None:
        compression = [1 / density for density in callback.survival.densities]
        save(
            layers_over_rounds(compression, callback.survival.kept()), folder / "layers_over_rounds"
        )


# -- side by side


def _compare(overlays: list[str], name: str | None, options: list[str], own: Sequence[str]) -> None:
    """Prune with each overlay from the same weights, and write a comparison of the results."""
    if len(set(overlays)) < max(2, len(overlays)):
        exit_with_error(
            f"compare: {' '.join(overlays) or 'no name'} is not at least two different names of"
            " pruners, such as snip grasp"
        )
    commands = {overlay: _with_overlay(options, overlay) for overlay in overlays}
    parsed = {
        overlay: _command(resolve_or_exit(["prune", *args]), own, pruner="compare")
        for overlay, args in commands.items()
    }
    for overlay, command in parsed.items():
        command.set_linked_options()
        _check(overlay, command.options.pruning)
    first = parsed[overlays[0]]
    group = create_run_folder(first.root / "lightning_logs", name or first.default_name)
    diagnoses, seconds = {}, {}
    for overlay, args in commands.items():
        # If the seed is drawn at random, every pruner gets the drawn one and the same weights.
        same = [
            "--seed_everything",
            str(first.options.seed_everything),
            "--pruning.on_collapse",
            "warn",
        ]
        command = _command(resolve_or_exit(["prune", *args, *same]))
        callback = pruning(_prune(command, group / overlay).trainer)
        assert callback.diagnosis is not None
        diagnoses[overlay], seconds[overlay] = callback.diagnosis, callback.seconds
    comparison = Comparison(diagnoses, seconds)
    comparison.to_csv(group / "comparison.csv")
    if len(comparison.layers) <= MOST_LAYERS:
        save(density_by_pruner(comparison.layers, comparison.densities), group / "comparison")
    print(f"\n{comparison.table()}\n\nThe runs lie in  {os.path.relpath(group)}")


def _with_overlay(options: list[str], overlay: str) -> list[str]:
    """Return the options with one more overlay, which overrides all other configuration files."""
    return [*options, "-c", f"pruners/{overlay}"]


def _check(overlay: str, options: Namespace) -> None:
    """Exit with an error for an overlay that cannot be compared, before anything is pruned."""
    if options.pruner is None:
        exit_with_error(f"compare: {overlay!r} prunes nothing; leave it out")
    if import_class(options.pruner.class_path).end_fraction is not None:
        exit_with_error(
            f"compare: {overlay!r} prunes during a training, and nothing is trained here; "
            "leave it out"
        )
    if given := [option for option in ("masks_path", "at_epoch") if options.get(option)]:
        exit_with_error(
            f"pruning.{given[0]} cannot go with compare, which prunes at initialisation"
        )
