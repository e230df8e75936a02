"""Build, from a parsed command, the classifier, the data, the trainer and the folder of the run."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from pytorch_lightning import Trainer

from synflow_pl.cli.command import Command
from synflow_pl.cli.data_properties import DataProperties
from synflow_pl.cli.errors import exit_with_error
from synflow_pl.cli.path_checks import check_output_paths
from synflow_pl.cli.run_errors import exit_when_stopped, expected_error
from synflow_pl.cli.run_opening import open_run_folder
from synflow_pl.cli.run_selection import RunSelection
from synflow_pl.cli.trainer_setup import add_run_callbacks, set_loggers, set_up_checkpoints
from synflow_pl.runs import create_run_folder
from synflow_pl.training import find_checkpoint, load_weights
from synflow_pl.training.signals import Stopped

__all__ = ["Session"]


class Session:
    """Classes, trainer and folder of the run that belong to one command.

    :meth:`build` builds the classes, :meth:`open_run` opens the folder of the run, and
    :meth:`execute` runs the subcommand. A command leaves out what it does not need.

    Args:
        command: Parsed command line.

    Attributes:
        command: Parsed command line.
        selection: The run that the command resumes.
        run_folder: Folder of the run, if the command writes into one.
        metrics: Metrics of the last test.
    """

    def __init__(self, command: Command) -> None:
        self.command = command
        self.selection = RunSelection(command)
        self.run_folder: Path | None = None
        self.metrics: list[Any] | None = None

    @property
    def options(self) -> Namespace:
        """Options of the subcommand."""
        return self.command.options

    @property
    def model(self) -> Any:
        """The classifier."""
        return self.command.model

    @property
    def datamodule(self) -> Any:
        """The data module."""
        return self.command.datamodule

    @cached_property
    def data_properties(self) -> DataProperties:
        """Shape, classes and normalisation of the images."""
        return self.command.data_properties(self.datamodule)

    @property
    def trainer(self) -> Trainer:
        """The trainer."""
        trainer: Trainer = self.command.trainer
        return trainer

    @property
    def callbacks(self) -> list[Any]:
        """Callbacks of the trainer."""
        # The attribute is set by one of the trainer's connectors, so mypy does not know it.
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        return callbacks

    def build(self) -> None:
        """Build data, classifier, callbacks and trainer, and check the checkpoint.

        No data is read, and no file is written.

        Raises:
            ValueError: If an option is invalid, or the checkpoint does not fit.
            TypeError: If a class does not accept its arguments.
            OSError: If a file cannot be read.
        """
        command = self.command
        self._check_checkpoint_options()
        check_output_paths(self.options.trainer, command.args)
        command.set_linked_options()
        self.selection.select()
        self.selection.apply_checkpoint_settings()
        command.build()
        set_up_checkpoints(self.trainer, command.name, self._is_finished)
        shape = self.data_properties.declared("input_shape")
        if shape is not None:
            # Lightning's summary needs it for shapes and FLOPs.
            self.model.example_input_array = torch.ones(1, *shape)
        optimizers = None
        if command.name == "fit":
            # Invalid arguments of an optimiser or a schedule are reported before pruning.
            optimizers = self.model.configure_optimizers()
        self.selection.check_checkpoint(self.model, optimizers)
        self._load_network_weights()

    def _check_checkpoint_options(self) -> None:
        """Replace the checkpoint's run by the path of the checkpoint; exit if there is none."""
        path = self.options.get("ckpt_path")
        if self.options.get("weights_only") is False:
            exit_with_error("weights_only: false would let a checkpoint run code; leave it out")
        if path and not (path == "last" and self.command.name == "fit"):
            try:
                self.options["ckpt_path"] = str(find_checkpoint(path))
            except FileNotFoundError as error:
                exit_with_error(str(error))

    def _is_finished(self) -> bool:
        return self.selection.finished

    def _load_network_weights(self) -> None:
        """Load ``--network_weights`` into the network, unless a checkpoint replaces them anyway."""
        if self.options.network_weights is not None and self.options.get("ckpt_path") is None:
            load_weights(
                self.model.network,
                self.options.network_weights,
                strict=self.options.network_weights_strict,
            )

    def open_run(self, folder: Path | None = None) -> None:
        """Open the folder of the run, and add the loggers and callbacks that write into it.

        With ``fast_dev_run`` there is no folder.

        Args:
            folder: Path of the folder to create for the run; by default the command's options
                determine the folder.

        Raises:
            ValueError: If the name cannot be that of a run, or another process works in the run.
            OSError: If the folder cannot be created.
        """
        config = self.command.trainer_config
        if not config.get("fast_dev_run"):
            self.run_folder = (
                open_run_folder(self.command, self.selection)
                if folder is None
                else create_run_folder(folder.parent, folder.name)
            )
            set_loggers(self.trainer, self.run_folder, config.get("logger"))
        if self.command.name == "fit":
            add_run_callbacks(self.trainer, self.run_folder)

    def execute(self, action: Callable[..., None]) -> None:
        """Run the subcommand, and print expected errors as one sentence.

        Expected errors are those that this package raises and those of the storage; any other
        error keeps its traceback.

        Args:
            action: Function of this object and the arguments of the trainer's method.
        """
        saves = self.command.trainer_config.get("enable_checkpointing") is not False
        resumable = self.run_folder is not None and self.command.name == "fit" and saves
        try:
            action(self, **self.command.method_arguments)
        except Stopped as stopped:
            exit_when_stopped(stopped, self.trainer, resumable=resumable)
        except SystemExit as left:
            if not isinstance(left.__context__, KeyboardInterrupt):
                raise
            exit_when_stopped(Stopped(signal.SIGINT), self.trainer, resumable=resumable)
        except Exception as error:
            message = expected_error(error)
            if message is None:
                raise
            exit_with_error(" ".join(message.split()), status=1)
