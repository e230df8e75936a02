"""The LightningCLI of synflow_pl: what each option means to whom, where a run writes, and what is printed at its end."""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import traceback
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.utilities import rank_zero_only

from synflow_pl.cli.messages import OURS, Parser, clarify, named, refuse_function, sentence
from synflow_pl.cli.predictions import write_predictions
from synflow_pl.cli.recipes import find_recipe
from synflow_pl.data import Images
from synflow_pl.diagnosis import DeadNetwork
from synflow_pl.runs import CONFIG, RunCSV, RunTensorBoard, claim, run_of
from synflow_pl.training import Classifier, PruneAtInit, find_checkpoint, load_weights
from synflow_pl.training.panels import show_hyperparameters

__all__ = ["CLI", "run"]

_EVALUATIONS = ("validate", "test", "predict")
# The run that the first process of several claimed; the others are started by it.
_CLAIMED = "SYNFLOW_PL_RUN"


def run(args: list[str]) -> CLI:
    """Run one command. A mistake in the options is one sentence on standard error and exit status 2.

    Args:
        args: what stands after ``synflow_pl`` on the command line.
    """
    try:
        args = _prepare(args)
    except (FileNotFoundError, ValueError) as error:
        sentence(str(error))
    _quieten()
    return CLI(args)


def _quieten() -> None:
    """Leave out what Lightning says at every start: advertisements, and the seed, which the run's name and config.yaml have."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_worth_saying)
    # A deprecation within Lightning that its user can do nothing about.
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*")


def _worth_saying(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "Tip:" not in message and "Seed set to" not in message


def _prepare(args: list[str]) -> list[str]:
    """Resolve recipes by name, and let an evaluation of a run start from that run's own configuration."""
    prepared: list[str] = []
    configured = False
    checkpoint = None
    index = 0
    while index < len(args):
        option, equals, value = args[index].partition("=")
        if option in ("-c", "--config", "--ckpt_path") and not equals and index + 1 < len(args):
            index += 1
            value = args[index]
        if option in ("-c", "--config") and value:
            configured = True
            prepared += ["--config", str(find_recipe(value))]
        elif option == "--ckpt_path" and value:
            checkpoint = value
            prepared += ["--ckpt_path", value]
        elif (kind := option.removeprefix("--").removesuffix(".help")) in OURS:
            if not equals and index + 1 < len(args):
                index += 1
                value = args[index]
            if option == "--model.network":
                refuse_function(value)
            prepared += [option, _full_path(OURS[kind], value)]
        else:
            prepared.append(args[index])
        index += 1
    if not configured and checkpoint is not None and prepared[0] in _EVALUATIONS:
        folder = run_of(find_checkpoint(checkpoint))
        if folder is not None:
            prepared[1:1] = ["--config", str(folder / CONFIG)]
    return prepared


def _full_path(room: str, name: str) -> str:
    """Our class of that name: others may have one too (torchvision has a VGG), and ours is meant."""
    return f"{room}.{name}" if name in import_module(room).__all__ else name


class _SaveConfig(SaveConfigCallback):
    """Saves config.yaml into a run when its training begins, and its settings into the HPARAMS tab."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        # In the order of the columns: what runs are compared by comes first.
        metrics = ["test/accuracy", "val/accuracy", "train/accuracy", "test/loss", "val/loss", "train/loss", "pruning/density"]
        show_hyperparameters(trainer.loggers, _settings(self.config), metrics)


class CLI(LightningCLI):
    """``fit``, ``validate``, ``test``, ``predict``: LightningCLI with our data, classifier and callback."""

    def __init__(self, args: list[str]) -> None:
        self.recipes = [Path(args[i + 1]) for i, arg in enumerate(args) if arg == "--config" and i + 1 < len(args)]
        self.run_folder: Path | None = None
        self.metrics: list[Any] | None = None
        super().__init__(
            Classifier,
            Images,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=_SaveConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"max_epochs": 1},
            parser_class=Parser,
            parser_kwargs={
                "allow_abbrev": False,
                "prog": "synflow_pl",
                "description": "Prune networks at initialisation, train them sparse.",
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    # -- options

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        kwargs.setdefault("allow_abbrev", False)
        parser: LightningArgumentParser = super().init_parser(**kwargs)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run", type=str | None, default=None, help="Name of the run's folder; by default recipe, pruner, density and seed."
        )
        parser.add_argument(
            "--network_weights",
            type=str | None,
            default=None,
            help="Weights to start from: of a run, a checkpoint, a state_dict or a safetensors file. A --ckpt_path goes first.",
        )
        parser.add_argument(
            "--network_weights_strict",
            type=bool,
            default=True,
            help="Whether network_weights must be this network's to the last tensor; false loads what fits.",
        )
        parser.add_lightning_class_args(PruneAtInit, "pruning")
        parser.set_defaults({"pruning.pruner": {"class_path": "synflow_pl.pruners.SynFlow"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    @property
    def options(self) -> Namespace:
        """The options of this subcommand."""
        options: Namespace = self.config[self.subcommand]
        return options

    def before_instantiate_classes(self) -> None:
        path = self.options.get("ckpt_path")
        if path and path not in ("best", "last", "hpc", "registry"):
            try:
                self.options["ckpt_path"] = str(find_checkpoint(path))
            except FileNotFoundError as error:
                sentence(str(error))

    def instantiate_classes(self) -> None:
        """Build everything; what a constructor refuses is one sentence, and no data has been touched by then."""
        try:
            self._fill_in()
            super().instantiate_classes()
            shape = getattr(self.datamodule, "input_shape", None)
            if shape is not None:
                self.model.example_input_array = torch.ones(1, *shape)  # lets Lightning's summary state shapes and FLOPs
            if self.subcommand == "fit":
                self.model.configure_optimizers()  # what an optimiser or a schedule refuses shows now, not after data and pruning
            self._load_network_weights()
            self._open_run()
        except (ValueError, TypeError, FileNotFoundError, ImportError, MisconfigurationException) as error:
            sentence(clarify(str(error), []))

    def _fill_in(self) -> None:
        """Give the network the data's ``input_shape`` and ``num_classes``, the classifier its ``num_classes``, and the schedule the
        number of epochs: in so far as a class has such an argument and the options leave it at its default.
        """
        model = self.options.model
        refuse_function(model.network.class_path)
        data = named(self.options.data.class_path)
        for name in ("input_shape", "num_classes"):
            value = getattr(data, name, None)
            if isinstance(value, (int, tuple)):
                _set_default(model.network, name, list(value) if isinstance(value, tuple) else value)
            if name == "num_classes" and isinstance(value, int):
                model.num_classes = value
        if isinstance(model.scheduler, Namespace):
            _set_default(model.scheduler, "epochs", self.options.trainer.max_epochs)

    def _load_network_weights(self) -> None:
        """Start from the weights of a file, unless a checkpoint is to be loaded, which has them all."""
        if self.options.network_weights is not None and self.options.get("ckpt_path") is None:
            load_weights(self.model.network, self.options.network_weights, strict=self.options.network_weights_strict)

    # -- the run

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, without loggers: they come with the run, which is opened when nothing can be refused any more."""
        trainer: Trainer = super().instantiate_trainer(**{"logger": False, **kwargs})
        return trainer

    def _open_run(self) -> None:
        """Find or make the folder that this command writes into, and let loggers and checkpoints do so."""
        config = self._get(self.config_init, "trainer")
        if not config.get("fast_dev_run"):
            self.run_folder = self._find_run(Path(config.get("default_root_dir") or "."))
            self.trainer.loggers = self._loggers(config.get("logger"))
        if self.trainer.loggers and self.subcommand == "fit":
            self.callbacks.insert(0, LearningRateMonitor())
        if self.run_folder is not None and self.subcommand == "fit":
            for callback in self.callbacks:
                if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                    callback.dirpath = str(self.run_folder / "checkpoints")

    def _find_run(self, root: Path) -> Path | None:
        if self.subcommand != "fit":
            checkpoint = self.options.get("ckpt_path")
            return run_of(Path(checkpoint)) if checkpoint else None
        if getattr(rank_zero_only, "rank", 0) != 0:
            return Path(os.environ[_CLAIMED]) if _CLAIMED in os.environ else None
        folder = self._resumed(root) or claim(root / "lightning_logs", self.options.get("run") or self._default_name())
        os.environ[_CLAIMED] = str(folder)
        self.options["run"] = folder.name
        return folder

    def _resumed(self, root: Path) -> Path | None:
        """The run that this one goes on in: the checkpoint's own, if its name was given."""
        name, checkpoint = self.options.get("run"), self.options.get("ckpt_path")
        folder = run_of(Path(checkpoint)) if name and checkpoint else None
        return folder if folder is not None and folder.resolve() == (root / "lightning_logs" / str(name)).resolve() else None

    def _default_name(self) -> str:
        overlay = next((path.stem for path in reversed(self.recipes) if path.parent.name == "pruners"), None)
        recipe = next((path.stem for path in self.recipes if path.parent.name != "pruners"), None)
        pruning = self.options.pruning
        if recipe is None:
            network = self.options.model.network
            # Of torchvision's and timm's networks the class says too little.
            recipe = f"{_short(self.options.data)}_{network.get('init_args', {}).get('name') or _short(network)}"
        pruner = overlay or (_short(pruning.pruner) if pruning.pruner else "dense")
        if pruning.sanity:
            pruner = f"{pruner}_{pruning.sanity}"
        if pruning.at_epoch:
            pruner = f"{pruner}_at{pruning.at_epoch}"
        if pruning.masks:
            pruner = f"masks_{Path(pruning.masks).stem}"
        amount = f"density{pruning.density:g}" if pruning.density is not None else f"kept{pruning.kept}" if pruning.kept else "density1"
        if pruning.effective_density is not None:
            amount = f"effective{pruning.effective_density:g}"
        return "-".join([recipe, pruner, amount, f"seed{self.options.seed_everything}"])

    def _loggers(self, asked: Any) -> list[Any]:
        """In a run metrics.csv always, and TensorBoard unless another logger, or none, was asked for; elsewhere what was asked for."""
        default = asked is None or asked is True
        others = [] if default or asked is False else asked if isinstance(asked, list) else [asked]
        if self.run_folder is None:
            return others
        return [RunCSV(self.run_folder), *([RunTensorBoard(self.run_folder)] if default else others)]

    @property
    def callbacks(self) -> list[Any]:
        """The trainer's callbacks."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]  # the trainer's connectors set it
        return callbacks

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it. What our own code refuses is a sentence; any other error keeps its traceback."""
        try:
            super()._run_subcommand(subcommand)
        except (DeadNetwork, ValueError, OSError, FloatingPointError, MisconfigurationException) as error:
            raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
            if not (isinstance(error, MisconfigurationException) or Path(raised_in).is_relative_to(Path(__file__).parents[1])):
                raise
            sentence(" ".join(str(error).split()), status=1)

    # -- what is said at the end

    def after_fit(self) -> None:
        """Say where the run lies, how to test it and how to look at it."""
        if self.run_folder is not None and self.trainer.is_global_zero:
            folder = os.path.relpath(self.run_folder)
            print(
                f"\nThe run lies in       {folder}\n"
                f"Test it with          python -m synflow_pl test --ckpt_path {folder}\n"
                f"Look at all runs with tensorboard --logdir {os.path.relpath(self.run_folder.parent)}"
            )

    def test(self, **kwargs: Any) -> None:
        """Run the test and keep its metrics."""
        self.metrics = self.trainer.test(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Predict, and write ``predictions.csv``: for each image its number or file, the likeliest class and its probability."""
        if self.trainer.world_size > 1:
            raise ValueError(f"predict runs on one device, not {self.trainer.world_size}; add --trainer.devices 1")
        batches = self.trainer.predict(**{**kwargs, "return_predictions": True})
        images = self.datamodule.predict_files if self.datamodule.predict_on is not None else itertools.count()
        write_predictions((self.run_folder or Path(".")) / "predictions.csv", images, torch.cat(batches))  # type: ignore[arg-type]


def _set_default(config: Namespace, name: str, value: Any) -> None:
    """Set an argument of a class to ``value``, if the class has it and the options leave it at its default."""
    argument = inspect.signature(named(config.class_path)).parameters.get(name)
    if argument is None:
        return
    default = list(argument.default) if isinstance(argument.default, tuple) else argument.default
    given = config.init_args.get(name) if "init_args" in config else None
    if given is None or given == default:
        config[f"init_args.{name}"] = value


def _short(config: Namespace) -> str:
    return str(config.class_path).rpartition(".")[2].lower()


def _plain(config: Namespace) -> dict[str, Any]:
    """Those arguments of a class that are numbers or words."""
    return {key: value for key, value in config.get("init_args", {}).items() if isinstance(value, (int, float, str, bool))}


def _settings(config: Namespace) -> dict[str, Any]:
    """The few options by which runs are compared."""
    model, pruning, data = config.model, config.pruning, config.data
    network = _plain(model.network)
    optimizer = model.optimizer.get("init_args", {}) if isinstance(model.optimizer, Namespace) else {}
    return {
        "data": _short(data),
        "network": _short(model.network),
        **{f"network/{key}": value for key, value in network.items()},
        "pruner": _short(pruning.pruner) if pruning.pruner else "dense",
        **{f"pruner/{key}": value for key, value in (_plain(pruning.pruner) if pruning.pruner else {}).items()},
        "density": pruning.density if pruning.density is not None else 1.0,
        "effective_density": pruning.effective_density,
        "rounds": pruning.rounds,
        "sanity": pruning.sanity,
        "at_epoch": pruning.at_epoch,
        "scope": pruning.scope,
        "schedule": pruning.schedule,
        "optimizer": _short(model.optimizer) if isinstance(model.optimizer, Namespace) else "default",
        "lr": optimizer.get("lr"),
        "weight_decay": optimizer.get("weight_decay"),
        "batch_size": data.init_args.get("batch_size"),
        "epochs": config.trainer.max_epochs,
        "precision": config.trainer.precision,
        "seed": config.seed_everything,
    }
