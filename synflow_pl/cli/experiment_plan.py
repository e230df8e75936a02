"""Build what an experiment's command line specifies: network, data, pruners and output folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from torch import Tensor
from tqdm import tqdm

from synflow_pl.cli.command import Command
from synflow_pl.cli.data_properties import attach_data
from synflow_pl.cli.errors import import_class
from synflow_pl.cli.recipes import find_recipe
from synflow_pl.cli.run_errors import exit_on_invalid_options
from synflow_pl.cli.run_names import recipe_name
from synflow_pl.cli.session import Session
from synflow_pl.cli.subcommands import fit
from synflow_pl.experiments import SquaredMagnitudes, first_scores
from synflow_pl.flow import example_of
from synflow_pl.pruners import Pruner
from synflow_pl.runs import create_run_folder
from synflow_pl.training.introspection import FreshBatches

__all__ = ["Plan", "Training", "pruner_of"]


def pruner_of(overlay: str) -> Pruner:
    """Return the pruner of ``configs/pruners/OVERLAY.yaml``.

    Args:
        overlay: Name of the overlay.

    Raises:
        FileNotFoundError: If there is no such overlay.
        ValueError: If the overlay has no pruner.
    """
    entry = _read_overlay(overlay)["pruner"]
    if entry is None:
        raise ValueError(f"pruners: {overlay!r} prunes nothing, so it has no scores")
    pruner: Pruner = import_class(entry["class_path"])(**entry.get("init_args", {}))
    return pruner


def _read_overlay(overlay: str) -> dict[str, Any]:
    """Return the options under ``pruning`` of ``configs/pruners/OVERLAY.yaml``."""
    options: dict[str, Any] = yaml.safe_load(find_recipe(f"pruners/{overlay}").read_text())
    return options["pruning"]


def _command(args: list[str], experiment: str, own: Sequence[str]) -> Command:
    """Parse the command line of an experiment, which is dense if it gives no density."""
    return Command(
        args,
        own,
        defaults={"pruning.density": 1.0},
        name_run=partial(_run_name, experiment),
    )


def _run_name(experiment: str, options: Namespace, recipes: Sequence[Path]) -> str:
    return f"{experiment}-{recipe_name(options, recipes)}-seed{options.seed_everything}"


class Plan:
    """Network and data of an experiment's command line; nothing is trained.

    Args:
        args: Resolved command line.
        experiment: Name of the experiment.
        own: Names of the experiment's own options.

    Attributes:
        options: Options of ``fit``.
        model: The classifier.
        datamodule: The data module.
    """

    def __init__(self, args: list[str], experiment: str, own: Sequence[str] = ()) -> None:
        self._session = Session(_command(args, experiment, own))
        # No run is opened: the folder is made when there is something to write into it.
        with exit_on_invalid_options():
            self._session.build()
        self.options = self._session.options
        self.model = self._session.model
        self.datamodule = self._session.datamodule

    @cached_property
    def folder(self) -> Path:
        """Folder of this experiment under ``lightning_logs``, created at the first access."""
        command = self._session.command
        return create_run_folder(
            command.root / "lightning_logs", command.options.get("run") or command.default_name
        )

    @property
    def network(self) -> torch.nn.Module:
        """The network, on the device on which it would be trained."""
        network: torch.nn.Module = self.model.network
        return network.to(self._session.trainer.strategy.root_device)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Example inputs of the network."""
        return example_of(self.network, self._session.data_properties.input_shape, None)

    def scoring(self, overlay: str) -> dict[str, Any]:
        """Return the options of ``pruning`` that affect the scores of an overlay's pruner.

        Args:
            overlay: Name of the overlay, whose ``train_mode`` applies unless the option is typed.
        """
        return {
            "exclude": self.options.pruning.exclude,
            "include": self.options.pruning.include,
            "train_mode": self._choose(overlay, "train_mode"),
        }

    def _choose(self, overlay: str, option: str) -> bool:
        """Return the value of a boolean option of ``pruning``: as typed, or as in the overlay."""
        given: bool = self.options.pruning[option]
        typed = (arg.partition("=")[0] for arg in self._session.command.args)
        if f"--pruning.{option}" in typed:
            return given
        return bool(_read_overlay(overlay).get(option, given))

    def batches(self, pruners: Iterable[Pruner], noise: int | None) -> list[tuple[Tensor, Tensor]]:
        """Return the batches to score on; none if no pruner needs data.

        Args:
            pruners: The pruners.
            noise: Number of images of Gaussian noise; ``None`` for the data set's pruning batches.
        """
        if not any(pruner.needs_batches for pruner in pruners):
            return []
        if noise is None:
            return self._draw(0)
        generator = torch.Generator().manual_seed(torch.initial_seed())
        data = self._session.data_properties
        images = torch.randn(noise, *data.input_shape, generator=generator)
        labels = torch.randint(data.num_classes, (noise,), generator=generator)
        size = getattr(self.datamodule, "batch_size", noise)
        return list(zip(images.split(size), labels.split(size), strict=True))

    @cached_property
    def _draw(self) -> FreshBatches:
        """Function from the index of a round to its batches."""
        trainer, model = self._session.trainer, self.model
        attach_data(trainer, model, self.datamodule, read=True)
        return FreshBatches(trainer, model)

    def batches_of_rounds(
        self, overlay: str, batches: list[tuple[Tensor, Tensor]], noise: int | None
    ) -> list[tuple[Tensor, Tensor]] | Callable[[int], list[tuple[Tensor, Tensor]]]:
        """Return the batches of all rounds, or a function of the round where each has its own.

        Args:
            overlay: Name of the overlay, whose ``fresh_batches`` applies unless the option is
                typed.
            batches: Batches of the first round.
            noise: Number of images of Gaussian noise, which all rounds share, or ``None``.
        """
        if not batches or noise is not None or not self._choose(overlay, "fresh_batches"):
            return batches
        return self._draw

    def scores(
        self, pruners: Mapping[str, Pruner], noise: int | None
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield each overlay's name and its scores of the unpruned network.

        Args:
            pruners: Pruners, by overlay.
            noise: Number of images of Gaussian noise; ``None`` for the data set's pruning batches.
        """
        inputs, batches = self.inputs, self.batches(pruners.values(), noise)
        density = self.options.pruning.density
        with tqdm(pruners.items(), unit="pruner", leave=False) as bar:
            for overlay, pruner in bar:
                bar.set_description(f"Scoring, {overlay}")
                loss = self.model.loss
                yield (
                    overlay,
                    first_scores(
                        self.network,
                        pruner,
                        inputs,
                        batches=batches,
                        loss=loss,
                        density=density,
                        **self.scoring(overlay),
                    ),
                )


class Training:
    """Dense training whose weights are recorded after each epoch.

    Args:
        args: Resolved command line.
        experiment: Name of the experiment.
        own: Names of the experiment's own options.

    Attributes:
        session: What was built and trained.
        recorder: Callback with the recorded weights.
    """

    def __init__(self, args: list[str], experiment: str, own: Sequence[str] = ()) -> None:
        self.recorder = SquaredMagnitudes()
        dense = [*args, "--config", str(find_recipe("pruners/dense"))]
        self.session = Session(_command(dense, experiment, own))
        with exit_on_invalid_options():
            self.session.build()
            self.session.open_run()
        self.session.callbacks.append(self.recorder)
        self.session.execute(fit)
