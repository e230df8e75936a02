"""What an experiment's command line means: a network, data, pruners by name, and a folder to write
into.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning.cli import LightningArgumentParser
from torch import Tensor
from tqdm import tqdm

from synflow_pl.cli.errors import import_class
from synflow_pl.cli.main import CLI
from synflow_pl.cli.recipes import find_recipe
from synflow_pl.experiments import SquaredMagnitudes, first_scores
from synflow_pl.flow import example_of
from synflow_pl.pruners import Pruner
from synflow_pl.runs import create_run_folder
from synflow_pl.training.introspection import find_loss

__all__ = ["Plan", "Training", "pruner_of"]


def pruner_of(overlay: str) -> Pruner:
    """The pruner that ``configs/pruners/OVERLAY.yaml`` names.

    Raises:
        FileNotFoundError: if there is no such overlay.
        ValueError: if it names none.
    """
    said = yaml.safe_load(find_recipe(f"pruners/{overlay}").read_text())["pruning"]["pruner"]
    if said is None:
        raise ValueError(f"pruners: {overlay!r} prunes nothing, so it has no scores")
    pruner: Pruner = import_class(said["class_path"])(**said.get("init_args", {}))
    return pruner


def _leave_dense(parser: LightningArgumentParser) -> None:
    """Keep every weight where neither a recipe nor an option gives a density."""
    parser.set_defaults({"pruning.density": 1.0})


class Plan(CLI):
    """The network and the data that a command line means; nothing is trained."""

    def __init__(self, args: list[str], experiment: str, own: Sequence[str] = ()) -> None:
        self.experiment = experiment
        super().__init__(args, own)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        _leave_dense(parser)

    def _open_run(self) -> None:
        """Nothing: the folder is made when there is something to write into it."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    @cached_property
    def folder(self) -> Path:
        """The folder of this experiment, under ``lightning_logs`` like a run's; made when it is
        first asked for.
        """
        root = Path(self.options.trainer.get("default_root_dir") or ".") / "lightning_logs"
        return create_run_folder(root, self.options.get("run") or self._default_name())

    def _default_name(self) -> str:
        return f"{self.experiment}-{self.recipe_name}-seed{self.options.seed_everything}"

    @property
    def network(self) -> torch.nn.Module:
        """On the device that it would be trained on."""
        network: torch.nn.Module = self.model.network
        return network.to(self.trainer.strategy.root_device)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """An example of its inputs."""
        return example_of(self.network, self.datamodule.input_shape, None)

    @property
    def scoring(self) -> dict[str, Any]:
        """The options of ``pruning`` that say what is scored, and how."""
        pruning = self.options.pruning
        exclude = pruning.exclude
        return {
            "exclude": (exclude,) if isinstance(exclude, str) else tuple(exclude),
            "train_mode": pruning.train_mode,
        }

    def batches(self, pruners: Iterable[Pruner], noise: int | None) -> list[tuple[Tensor, Tensor]]:
        """What those pruners score on that need data: so many images of noise, or what the data set
        gives for it.
        """
        if not any(pruner.needs_batches for pruner in pruners):
            return []
        if noise is None:
            self.datamodule.prepare_data()
            return list(self.datamodule.pruning_batches())
        generator = torch.Generator().manual_seed(torch.initial_seed())
        images = torch.randn(noise, *self.datamodule.input_shape, generator=generator)
        labels = torch.randint(self.datamodule.num_classes, (noise,), generator=generator)
        size = self.datamodule.batch_size
        return list(zip(images.split(size), labels.split(size), strict=True))

    def scores(
        self, pruners: Mapping[str, Pruner], noise: int | None
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """By overlay, its first scores of the network."""
        inputs, batches = self.inputs, self.batches(pruners.values(), noise)
        density = self.options.pruning.density
        with tqdm(pruners.items(), unit="pruner", leave=False) as bar:
            for overlay, pruner in bar:
                bar.set_description(f"Scoring, {overlay}")
                loss = find_loss(self.model)
                yield (
                    overlay,
                    first_scores(
                        self.network,
                        pruner,
                        inputs,
                        batches=batches,
                        loss=loss,
                        density=density,
                        **self.scoring,
                    ),
                )


class Training(CLI):
    """A dense training that is looked at."""

    def __init__(self, args: list[str], experiment: str, own: Sequence[str] = ()) -> None:
        self.experiment = experiment
        self.watch = SquaredMagnitudes()
        super().__init__([*args, "--config", str(find_recipe("pruners/dense"))], own)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        _leave_dense(parser)

    def _open_run(self) -> None:
        super()._open_run()
        self.callbacks.append(self.watch)

    def _default_name(self) -> str:
        return f"{self.experiment}-{self.recipe_name}-seed{self.options.seed_everything}"
