"""Parse a command line with the options of ``fit``, and build the classes that it configures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from synflow_pl.cli import COMMANDS
from synflow_pl.cli.command_line import resolve_or_exit
from synflow_pl.cli.data_properties import DataProperties
from synflow_pl.cli.errors import Parser
from synflow_pl.cli.hyperparameters import ShowConfig
from synflow_pl.cli.linked_options import set_linked_options
from synflow_pl.cli.log_filters import quieten
from synflow_pl.cli.run_names import run_name
from synflow_pl.cli.trainer_setup import training_callbacks
from synflow_pl.training import Classifier, PruneAtInit

__all__ = ["Command", "parse_fit"]


def parse_fit(options: list[str], own: Sequence[str] = ()) -> Command:
    """Parse options of ``fit`` without building anything, and set the linked options.

    Args:
        options: The options.
        own: Names of the calling command's own options, for suggestions in errors.

    Raises:
        ValueError: If the network is given as a function.
    """
    quieten()
    command = Command(resolve_or_exit(["fit", *options]), own)
    command.set_linked_options()
    return command


class Command(LightningCLI):
    """Parsed command line of ``fit`` or of another subcommand with the options of ``fit``.

    The constructor parses the command line and sets the seed. :meth:`build` builds the classes;
    the subcommand is run by a :class:`~synflow_pl.cli.session.Session`.

    Args:
        args: Resolved command line.
        own: Names of options that the subcommand parses by itself, for suggestions in errors about
            misspelt options.
        subcommands: Subcommands of the parser, which are methods of the trainer, each with the
            arguments of its method that are no options; by default those of Lightning's Trainer.
        trainer_class: Class of the trainer.
        defaults: Defaults of options, by name, where they differ from those of ``fit``.
        name_run: Function that takes the options and the configuration files, and returns the run's
            default name.

    Attributes:
        args: Resolved command line.
        recipes: Configuration files of the command line, in their order.
    """

    def __init__(
        self,
        args: list[str],
        own: Sequence[str] = (),
        *,
        subcommands: dict[str, set[str]] | None = None,
        trainer_class: type[Trainer] = Trainer,
        defaults: Mapping[str, Any] | None = None,
        name_run: Callable[[Namespace, Sequence[Path]], str] = run_name,
    ) -> None:
        self.args = args
        self.recipes = [
            Path(args[i + 1])
            for i, arg in enumerate(args)
            if arg == "--config" and i + 1 < len(args)
        ]
        self._own = own
        known = subcommands or super().subcommands()
        # Options of the subcommands that are not called would take most of the parser's time.
        self._subcommands = {name: known[name] for name in args[:1] if name in known} or known
        self._defaults = defaults or {}
        self._name_run = name_run
        super().__init__(
            Classifier,
            LightningDataModule,
            trainer_class=trainer_class,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=ShowConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={"max_epochs": 1},
            parser_class=Parser,
            parser_kwargs={
                "allow_abbrev": False,
                "prog": "synflow_pl",
                "description": "Prune networks at initialisation, train them sparse. "
                f"Further commands: {', '.join(sorted(COMMANDS))}.",
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    # -- hooks of LightningCLI

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # of this object
        """Return the subcommands, with the arguments of their methods that are no options."""
        return self._subcommands

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        kwargs.setdefault("allow_abbrev", False)
        parser: LightningArgumentParser = super().init_parser(**kwargs)
        if isinstance(parser, Parser):
            parser.own = self._own
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="Name of the run's folder; by default recipe, pruner, density and seed.",
        )
        parser.add_argument(
            "--network_weights",
            type=str | None,
            default=None,
            help="Weights to start from: a run, a checkpoint, a state_dict or a safetensors file. "
            "A --ckpt_path takes precedence.",
        )
        parser.add_argument(
            "--network_weights_strict",
            type=bool,
            default=True,
            help="Whether network_weights must match the network tensor by tensor; false loads "
            "what fits.",
        )
        parser.add_argument(
            "--checkpoint_every_n_steps",
            type=int,
            default=500,
            help="Number of optimiser steps between checkpoints; one is also written after each "
            "epoch.",
        )
        parser.add_lightning_class_args(PruneAtInit, "pruning")
        parser.set_defaults({"pruning.pruner": {"class_path": "synflow_pl.pruners.SynFlow"}})
        parser.set_defaults(dict(self._defaults))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)
        self._replaced = False

    def _parse_ckpt_path(self) -> None:
        """Do nothing: hyperparameters stored in a checkpoint must not change the options."""

    def instantiate_classes(self) -> None:
        """Do nothing: LightningCLI would build the classes as soon as the options are parsed."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing: LightningCLI would run the subcommand in the constructor."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer without loggers, which need the folder of the run."""
        trainer: Trainer = super().instantiate_trainer(**{"logger": False, **kwargs})
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if self.subcommand == "fit":
            callbacks = training_callbacks(callbacks, config, self.options.checkpoint_every_n_steps)
        trainer: Trainer = super()._instantiate_trainer(config, callbacks)
        return trainer

    # -- the options

    @property
    def name(self) -> str:
        """Name of the subcommand."""
        return str(self.subcommand)

    @property
    def options(self) -> Namespace:
        """Options of the subcommand."""
        options: Namespace = self.config[self.subcommand]
        return options

    @property
    def config_text(self) -> str:
        """All options of the command, in the format of config.yaml."""
        text: str = self._parser(self.subcommand).dump(self.options, skip_unset=False)
        return text

    @property
    def default_name(self) -> str:
        """Default name of a run with these options."""
        return self._name_run(self.options, self.recipes)

    @property
    def root(self) -> Path:
        """Folder that contains ``lightning_logs``."""
        return Path(self.options.trainer.get("default_root_dir") or ".")

    def set_linked_options(self) -> None:
        """Set options that follow from others.

        Raises:
            ValueError: If the network is given as a function, or the data module does not say what
                shape or how many classes its images have.
        """
        set_linked_options(self.options, self.default_name, self.data_properties())

    def data_properties(self, data: LightningDataModule | None = None) -> DataProperties:
        """Return shape and classes of the images.

        Args:
            data: The data module, if it has been built.
        """
        return DataProperties(self.options, self._given_classes, data)

    def _given_classes(self) -> int | None:
        """Return the number of classes that the command line or a file gives, if one does."""
        options = self.options
        if not self._replaced:
            options = self.parser.parse_args(self.args, defaults=False)[self.name]
        number: int | None = options.get("model.num_classes")
        return number

    def replace_options(self, options: dict[str, Any]) -> None:
        """Replace all options of the subcommand.

        Args:
            options: The options, as in config.yaml.
        """
        self.config[self.subcommand] = self._parser(self.subcommand).parse_object(options)
        self._replaced = True

    # -- the classes

    def build(self) -> None:
        """Build the data, the classifier, the callbacks and the trainer."""
        super().instantiate_classes()

    @property
    def trainer_config(self) -> Namespace:
        """Options of the trainer, with the classes in them built."""
        config: Namespace = self._get(self.config_init, "trainer")
        return config

    @property
    def method_arguments(self) -> dict[str, Any]:
        """Arguments of the trainer's method that is the subcommand."""
        arguments: dict[str, Any] = self._prepare_subcommand_kwargs(self.name)
        return arguments
