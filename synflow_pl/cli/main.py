"""The LightningCLI of synflow_pl, which builds a training or evaluation from the command line.

It links options between the data, the network and the classifier, opens or resumes the run's
folder, checks the checkpoint, and prints where the results are.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import Namespace
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from synflow_pl.cli import COMMANDS, resume, slurm
from synflow_pl.cli.checkpoint_overrides import checkpoint_overrides, warn_of_overrides
from synflow_pl.cli.errors import (
    PACKAGE_MODULES,
    Parser,
    clarify,
    exit_with_error,
    import_class,
    refuse_function,
)
from synflow_pl.cli.path_checks import check_output_paths
from synflow_pl.cli.predictions import write_predictions
from synflow_pl.cli.recipes import find_recipe
from synflow_pl.cli.record_callback import Recording
from synflow_pl.cli.untrained import warn_untrained
from synflow_pl.data import ImageDataModule
from synflow_pl.diagnosis import DeadNetwork
from synflow_pl.io import explain, storage_error, write_error_message
from synflow_pl.runs import (
    CONFIG,
    PRUNED,
    RunCSV,
    RunTensorBoard,
    create_run_folder,
    find_run_folder,
)
from synflow_pl.runs.environment import record_environment
from synflow_pl.runs.loggers import Tested
from synflow_pl.runs.run_record import changed_test_options
from synflow_pl.runs.training_record import Training, read_record, write_record
from synflow_pl.training import (
    Classifier,
    DurableCheckpointIO,
    LastCheckpoint,
    PruneAtInit,
    Reseed,
    find_checkpoint,
    load_weights,
)
from synflow_pl.training.checkpoint_connector import CheckpointConnector, refuse
from synflow_pl.training.checkpoints import read
from synflow_pl.training.distributed import Disagreement
from synflow_pl.training.signals import Stopped
from synflow_pl.training.throughput import Throughput
from synflow_pl.training.visualization import show_hyperparameters

__all__ = ["CLI", "resolved", "run"]

_EVALUATIONS = ("validate", "test", "predict")
# Environment variable with the run's folder, which rank 0 claims and other ranks inherit.
_CLAIMED = "SYNFLOW_PL_RUN"


def run(args: list[str]) -> CLI:
    """Run one command.

    A mistake in the options is one sentence on standard error and exit status 2.

    Args:
        args: Arguments after ``synflow_pl`` on the command line.

    Returns:
        The CLI after its subcommand has run.
    """
    args = resolved(args)
    _quieten()
    return CLI(args)


def resolved(args: list[str]) -> list[str]:
    """Return a command line with the full path of every recipe and every class of this package.

    A mistake is one sentence on standard error and exit status 2.

    Args:
        args: Arguments after ``synflow_pl`` on the command line.
    """
    try:
        return _prepare(args)
    except (FileNotFoundError, ValueError) as error:
        exit_with_error(str(error))


def _quieten() -> None:
    """Silence messages that Lightning logs at every start, and a deprecation within Lightning.

    They are advertisements, checkpoint paths, and the seed, which is in the run's name already.
    """
    for name in (
        "pytorch_lightning.utilities.rank_zero",
        "lightning_fabric.utilities.seed",
        "lightning_fabric.utilities.rank_zero",
    ):
        logging.getLogger(name).addFilter(_is_informative)
    # Only a new version of Lightning can mend this deprecation.
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*")
    threading.excepthook = _report_thread


def _report_thread(failure: threading.ExceptHookArgs) -> None:
    """Report an error in a thread, unless it is a storage error in TensorBoard's writer thread.

    TensorBoard raises such an error again in the main thread.
    """
    if (
        type(failure.thread).__module__.startswith("tensorboard.")
        and storage_error(failure.exc_value) is not None
    ):
        return
    threading.__excepthook__(failure)


def _is_informative(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(
        text in message
        for text in ("Tip:", "Seed set to", "Restoring states from", "Restored all states from")
    )


def _prepare(args: list[str]) -> list[str]:
    """Resolve recipes and classes by name, and add a run's config.yaml to its evaluation.

    Files are moved before all options, in their own order: of two settings the parser keeps the
    later, so options override files wherever they are typed. A file before the subcommand stays
    there.

    Args:
        args: Arguments after ``synflow_pl`` on the command line.
    """
    prepared: list[str] = []
    before: list[str] = []
    files: list[str] = []
    checkpoint = None
    index = 0
    while index < len(args):
        if args[index].startswith("-c") and args[index][2:3] not in ("", "="):
            # argparse allows "-cNAME".
            args = [*args[:index], "-c", args[index][2:], *args[index + 1 :]]
        option, equals, value = args[index].partition("=")
        if not before and not option.startswith("-"):
            before = [*files, option]
            files = []
            index += 1
            continue
        if option in ("-c", "--config", "--ckpt_path") and not equals and index + 1 < len(args):
            index += 1
            value = args[index]
        if option in ("-c", "--config") and value:
            files += ["--config", str(find_recipe(value))]
        elif option == "--ckpt_path" and value:
            checkpoint = value
            prepared += ["--ckpt_path", value]
        elif (kind := option.removeprefix("--").removesuffix(".help")) in PACKAGE_MODULES:
            if not equals and index + 1 < len(args):
                index += 1
                value = args[index]
            if option == "--model.network":
                refuse_function(value)
            prepared += [option, _full_path(PACKAGE_MODULES[kind], value)]
        else:
            prepared.append(args[index])
        index += 1
    if not files and checkpoint is not None and len(before) == 1 and before[0] in _EVALUATIONS:
        folder = find_run_folder(find_checkpoint(checkpoint))
        if folder is not None:
            files = ["--config", str(folder / CONFIG)]
    return [*before, *files, *prepared]


def _full_path(module: str, name: str) -> str:
    """Return the full path of a class of this package, or ``name`` if there is no such class.

    A bare name could otherwise be ambiguous: torchvision has a VGG too.
    """
    return f"{module}.{name}" if name in import_module(module).__all__ else name


class _ShowConfig(SaveConfigCallback):
    """Show the settings of a run in TensorBoard's HPARAMS tab.

    It does not write config.yaml, which is written when the run is opened.
    """

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        # In the order of the columns: the metrics by which runs are compared come first.
        metrics = [
            "test/accuracy",
            "val/accuracy",
            "train/accuracy",
            "test/loss",
            "val/loss",
            "train/loss",
            "pruning/density",
        ]
        show_hyperparameters(trainer.loggers, _settings(self.config), metrics)


class CLI(LightningCLI):
    """LightningCLI for ``fit``, ``validate``, ``test`` and ``predict`` of pruned classifiers.

    Args:
        args: Resolved command line.
        own: Names of options that the subcommand parses by itself, for suggestions in errors about
            misspelt options.

    Attributes:
        typed: Resolved command line.
        recipes: Configuration files of the command line, in their order.
        run_folder: Folder of the run, if the command writes into one.
        metrics: Metrics of the last test.
    """

    trainer_kind: type[Trainer] = Trainer
    """Class of the trainer, whose methods are the subcommands."""

    def __init__(self, args: list[str], own: Sequence[str] = ()) -> None:
        self.typed = args
        self._own = own
        self.recipes = [
            Path(args[i + 1])
            for i, arg in enumerate(args)
            if arg == "--config" and i + 1 < len(args)
        ]
        self.run_folder: Path | None = None
        self.metrics: list[Any] | None = None
        self._resumed_run: Path | None = None
        self._typed_settings: dict[str, Any] = {}
        self._recorded_config: str | None = None
        self._finished = False
        super().__init__(
            Classifier,
            ImageDataModule,
            trainer_class=self.trainer_kind,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=_ShowConfig,
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

    # -- options

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

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    @property
    def options(self) -> Namespace:
        """Options of the subcommand."""
        options: Namespace = self.config[self.subcommand]
        return options

    @property
    def _is_first(self) -> bool:
        """True in the process of rank 0."""
        return bool(getattr(rank_zero_only, "rank", 0) == 0)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: hyperparameters stored in a checkpoint must not change the options."""

    def before_instantiate_classes(self) -> None:
        path = self.options.get("ckpt_path")
        if self.options.get("weights_only") is False:
            exit_with_error("weights_only: false would let a checkpoint run code; leave it out")
        if path and not (path == "last" and self.subcommand == "fit"):
            try:
                self.options["ckpt_path"] = str(find_checkpoint(path))
            except FileNotFoundError as error:
                exit_with_error(str(error))

    def instantiate_classes(self) -> None:
        """Build data, classifier, callbacks and trainer, check the checkpoint, and open the run.

        An error that a constructor raises is printed as one sentence. No data has been read by
        then.
        """
        try:
            check_output_paths(self.options.trainer, self.typed)
            self._fill_in()
            self._select_run_to_resume()
            self._apply_checkpoint_settings()
            super().instantiate_classes()
            shape = getattr(self.datamodule, "input_shape", None)
            if shape is not None:
                # Lightning's summary needs it for shapes and FLOPs.
                self.model.example_input_array = torch.ones(1, *shape)
            optimizers = None
            if self.subcommand == "fit":
                # Invalid arguments of an optimiser or a schedule are reported before pruning.
                optimizers = self.model.configure_optimizers()
            self._check_checkpoint(optimizers)
            self._load_network_weights()
            self._open_run()
        except (
            ValueError,
            TypeError,
            FileNotFoundError,
            ImportError,
            MisconfigurationException,
        ) as error:
            exit_with_error(clarify(str(error), []))
        except OSError as error:
            exit_with_error(explain(error), status=1)

    def _fill_in(self) -> None:
        """Set options that follow from others, where a class has them and they are at the default.

        The network gets the data's ``input_shape`` and ``num_classes``, the classifier gets its
        ``num_classes``, and the schedule gets the number of epochs. A logger that would choose a
        random name for the run gets the run's name.
        """
        model = self.options.model
        refuse_function(model.network.class_path)
        data = import_class(self.options.data.class_path)
        for name in ("input_shape", "num_classes"):
            value = getattr(data, name, None)
            if isinstance(value, (int, tuple)):
                _set_default(
                    model.network, name, list(value) if isinstance(value, tuple) else value
                )
            if name == "num_classes" and isinstance(value, int):
                model.num_classes = value
        if isinstance(model.scheduler, Namespace):
            _set_default(model.scheduler, "epochs", self.options.trainer.max_epochs)
        configured = self.options.trainer.get("logger")
        for logger in configured if isinstance(configured, list) else [configured]:
            if isinstance(logger, Namespace):
                for name in ("name", "run_name"):  # of W&B and of MLflow
                    if logger.get("init_args", {}).get(name, "") is None:
                        logger.init_args[name] = self.options.get("run") or self._default_name()

    def _load_network_weights(self) -> None:
        """Load ``--network_weights`` into the network, unless a checkpoint replaces them anyway."""
        if self.options.network_weights is not None and self.options.get("ckpt_path") is None:
            load_weights(
                self.model.network,
                self.options.network_weights,
                strict=self.options.network_weights_strict,
            )

    # -- the run

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer without loggers, which need the folder of the run.

        The run is opened last, when all checks have passed.
        """
        trainer: Trainer = super().instantiate_trainer(**{"logger": False, **kwargs})
        # The strategy ddp_spawn pickles the trainer, so this cannot be a lambda.
        finished = partial(getattr, self, "_finished")
        trainer._checkpoint_connector = CheckpointConnector(
            trainer, self._rewind_metrics, finished=finished
        )
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = DurableCheckpointIO()
        slurm.listen(trainer)
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if self.subcommand == "fit":
            callbacks = [Reseed(), *callbacks]
            if (
                config.get("enable_checkpointing") is not False
                and not config.get("fast_dev_run")
                and not config.get("barebones")
            ):
                callbacks.append(LastCheckpoint(self.options.checkpoint_every_n_steps))
        trainer: Trainer = super()._instantiate_trainer(config, callbacks)
        return trainer

    @property
    def _config_text(self) -> str:
        """All options of the command, in the format of config.yaml."""
        text: str = self._parser(self.subcommand).dump(self.options, skip_unset=False)
        return text

    def _select_run_to_resume(self) -> None:
        """Select the run for ``--ckpt_path last``, or the run of this requeued SLURM job."""
        requested = self.subcommand == "fit" and self.options.get("ckpt_path") == "last"
        if requested:
            self.options["ckpt_path"] = None
        if (
            self.subcommand != "fit"
            or self.options.trainer.get("fast_dev_run")
            or not (requested or slurm.restarted())
        ):
            return
        if not self._is_first:
            return  # rank 0 selects the run and passes its folder on
        name = self.options.get("run")
        root = Path(self.options.trainer.get("default_root_dir") or ".") / "lightning_logs"
        run, remarks = resume.find_run_to_resume(
            root, resume.settings(self._config_text), name, requested=requested
        )
        if run is not None:
            self._resumed_run = run
            self.options["run"] = run.name
            try:
                self.options["ckpt_path"] = str(find_checkpoint(run))
            except FileNotFoundError:
                record = read_record(run)
                if record is not None and record.ended:
                    raise ValueError(f"{_finished(run, record)} It kept no checkpoint.") from None
                resume.remove_training_files(run)
                print(
                    f"{run} was stopped before its first checkpoint; it starts again there, with"
                    " pruning."
                )
            return
        same = root / (name or self._default_name())
        if requested and (same / CONFIG).is_file() and not remarks:
            was, now = resume.settings_of(same), resume.settings(self._config_text)
            if keys := resume.differing_options(was, now):
                remarks = [f"{same} has {keys[0]}={was.get(keys[0])}, not {now.get(keys[0])}"]
        if requested:
            reasons = "".join(f"; {remark}" for remark in remarks)
            print(f"No run with these settings to resume, so a new one is begun{reasons}.")

    def _apply_checkpoint_settings(self) -> None:
        """Replace the options that the checkpoint overrides by the settings of its run.

        So config.yaml states the options that are in effect. A run that has ended, with the same
        settings, is not trained again.
        """
        text = self._config_text
        self._typed_settings = resume.settings(text)
        path = self.options.get("ckpt_path")
        run = find_run_folder(Path(path)) if path is not None else None
        if path is None or run is None or self.subcommand != "fit":
            return
        content = read(path)
        if not isinstance(content, Mapping):
            return  # _check_checkpoint raises an error about its content
        root = Path(self.options.trainer.get("default_root_dir") or ".")
        same = self._resumed_run is not None or self._run_of_checkpoint(root) is not None
        was, now = yaml.safe_load((run / CONFIG).read_text()), yaml.safe_load(text)
        settings = resume.settings_of(run)
        keys = checkpoint_overrides(
            settings, self._typed_settings, content, trains=True, same_run=same
        )
        if keys and not any(
            key.endswith("model.optimizer.class_path") or key.endswith("scheduler.class_path")
            for key in keys
        ):
            effective = resume.replace_options(now, was, keys)
            if not resume.missing_files(effective["pruning"]):
                self.config[self.subcommand] = self._parser(self.subcommand).parse_object(effective)
            self._recorded_config = yaml.safe_dump(effective, sort_keys=False)
            if "seed_everything" in keys:
                seed_everything(int(self.options.seed_everything), workers=True)
        record = read_record(run)
        if record is not None and record.ended and record.steps == content.get("global_step"):
            here = same or self.options.get("run") is None
            if here and not resume.differing_options(
                settings, resume.settings(self._recorded_config or text)
            ):
                self._finished, self._resumed_run = True, run
                self.options["run"] = run.name
                if self._is_first and not resume.acquire_run(run):
                    raise ValueError(
                        f"run: another process works in {run}; wait for it or end it, or give "
                        "another --run"
                    )

    def _check_checkpoint(self, configured: Any) -> None:
        """Check, before a run is opened, that the checkpoint can be loaded.

        A note is printed for each option that the checkpoint overrides.

        Args:
            configured: Return value of the classifier's ``configure_optimizers``; ``None`` for an
                evaluation.

        Raises:
            ValueError: If the checkpoint does not fit the network or the optimisers.
        """
        path = self.options.get("ckpt_path")
        if self.subcommand in _EVALUATIONS:
            warn_untrained(self.subcommand, self.options)
        if path is None:
            return
        content = read(path)
        optimizers = None
        if configured is not None:
            optimizers = (
                configured[0]
                if isinstance(configured, (tuple, list))
                else [configured["optimizer"] if isinstance(configured, dict) else configured]
            )
        refuse(path, content, self.model, optimizers)
        run = find_run_folder(Path(path))
        if run is not None and run != self._resumed_run:
            trains = self.subcommand == "fit"
            root = Path(self.options.trainer.get("default_root_dir") or ".")
            same = trains and self._run_of_checkpoint(root) is not None
            warn_of_overrides(
                resume.settings_of(run), self._typed_settings, content, trains=trains, same_run=same
            )

    def _rewind_metrics(self, content: Mapping[str, Any]) -> None:
        """Remove what metrics.csv logged after the checkpoint, since those steps are repeated."""
        for logger in self.trainer.loggers:
            if isinstance(logger, RunCSV) and self.subcommand == "fit":
                logger.rewind(content["global_step"])

    def _open_run(self) -> None:
        """Find or make the folder of the run, and set up loggers and callbacks that write to it."""
        config = self._get(self.config_init, "trainer")
        if not config.get("fast_dev_run"):
            self.run_folder = self._find_run(Path(config.get("default_root_dir") or "."))
            self.trainer.loggers = self._loggers(config.get("logger"))
        if self.trainer.loggers and self.subcommand == "fit":
            self.callbacks.insert(0, LearningRateMonitor())
            # After PruneAtInit, so that the time of pruning is not counted.
            self.callbacks.append(Throughput())
        if self.run_folder is not None and self.subcommand == "fit":
            self.callbacks.insert(0, Recording(self.run_folder))
        if self.run_folder is not None and self.subcommand == "fit":
            for callback in self.callbacks:
                if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                    callback.dirpath = str(self.run_folder / "checkpoints")

    def _find_run(self, root: Path) -> Path | None:
        if self.subcommand in _EVALUATIONS:
            checkpoint = self.options.get("ckpt_path")
            return find_run_folder(Path(checkpoint)) if checkpoint else None
        if not self._is_first:
            return Path(os.environ[_CLAIMED]) if _CLAIMED in os.environ else None
        folder = self._resumed_run or self._run_of_checkpoint(root)
        if folder is None:
            folder = create_run_folder(
                root / "lightning_logs", self.options.get("run") or self._default_name()
            )
        os.environ[_CLAIMED] = str(folder)
        self.options["run"] = folder.name
        if self._resumed_run is None:
            if not resume.acquire_run(folder):
                raise ValueError(
                    f"run: another process works in {folder}; wait for it or end it, or give "
                    "another --run"
                )
            resume.write_config(folder, self._recorded_config or self._config_text)
        if self.subcommand == "fit" and not self._finished:
            write_record(folder, Training(False))
        record_environment(folder)
        return folder

    def _run_of_checkpoint(self, root: Path) -> Path | None:
        """Return the checkpoint's own run if ``--run`` gives its name, so that it is resumed."""
        name, checkpoint = self.options.get("run"), self.options.get("ckpt_path")
        folder = find_run_folder(Path(checkpoint)) if name and checkpoint else None
        own = folder is not None and (folder.resolve().parent, folder.name) == (
            (root / "lightning_logs").resolve(),
            name,
        )
        return folder if own else None

    @property
    def recipe_name(self) -> str:
        """Name of the recipe, or of data and network if there is no recipe."""
        recipe = next((path.stem for path in self.recipes if path.parent.name != "pruners"), None)
        network = self.options.model.network
        # TorchVision and Timm networks have the architecture in `name`.
        architecture = network.get("init_args", {}).get("name") or _class_name(network)
        return recipe or f"{_class_name(self.options.data)}_{architecture}"

    def _default_name(self) -> str:
        pruning = self.options.pruning
        if pruning.masks_path and (
            source := Path(pruning.masks_path).resolve().parent.name
        ).endswith(PRUNED):
            return source.removesuffix(PRUNED)
        amount = (
            f"density{pruning.density:g}"
            if pruning.density is not None
            else f"kept{pruning.num_kept}"
            if pruning.num_kept
            else "density1"
        )
        if pruning.effective_density is not None:
            amount = f"effective{pruning.effective_density:g}"
        return "-".join(
            [self.recipe_name, self._pruner_name(), amount, f"seed{self.options.seed_everything}"]
        )

    def _pruner_name(self) -> str:
        """Return the part of a run's name that identifies the pruner.

        It is the overlay, or else the class, followed by the sanity check and the epoch of pruning.
        """
        pruning = self.options.pruning
        if pruning.masks_path:
            path = Path(pruning.masks_path).resolve()
            return f"masks_{path.parent.name if find_run_folder(path) is not None else path.stem}"
        overlay = next(
            (path.stem for path in reversed(self.recipes) if path.parent.name == "pruners"), None
        )
        pruner = overlay or (_class_name(pruning.pruner) if pruning.pruner else "dense")
        sanity = f"_{pruning.sanity}" if pruning.sanity else ""
        return f"{pruner}{sanity}_at{pruning.at_epoch}" if pruning.at_epoch else f"{pruner}{sanity}"

    def _loggers(self, configured: Any) -> list[Any]:
        """Return the loggers of the command.

        A run always has metrics.csv, and TensorBoard's events unless another logger, or none, is
        configured.

        Args:
            configured: Option ``trainer.logger``, instantiated.
        """
        default = configured is None or configured is True
        if default or configured is False:
            others = []
        else:
            others = configured if isinstance(configured, list) else [configured]
        if self.run_folder is None:
            return others
        return [
            RunCSV(self.run_folder),
            *([RunTensorBoard(self.run_folder)] if default else others),
        ]

    @property
    def callbacks(self) -> list[Any]:
        """Callbacks of the trainer."""
        # The attribute is set by one of the trainer's connectors, so mypy does not know it.
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        return callbacks

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the subcommand, and print expected errors as one sentence.

        Expected errors are those that this package raises and those of the storage; any other
        error keeps its traceback.
        """
        try:
            super()._run_subcommand(subcommand)
        except Stopped as stopped:
            self._stopped(stopped)
        except SystemExit as left:
            if not isinstance(left.__context__, KeyboardInterrupt):
                raise
            self._stopped(Stopped(signal.SIGINT))
        except Exception as error:
            message = _expected_error(error)
            if message is None:
                raise
            exit_with_error(" ".join(message.split()), status=1)

    def _stopped(self, stopped: Stopped) -> NoReturn:
        """Print how training can be resumed, and exit with the signal's exit status."""
        if self.trainer.is_global_zero:
            where = (
                f"; {os.path.relpath(stopped.checkpoint)} is whole" if stopped.checkpoint else ""
            )
            what = "resumes" if stopped.checkpoint else "starts again"
            if stopped.number == signal.SIGUSR1:
                # Printed first, since SLURM kills a job when it is requeued.
                print(
                    f"\nSLURM's time is nearly up{where}. The job is queued again and then {what} "
                    "by itself.",
                    flush=True,
                )
                slurm.queue_again()
                raise SystemExit(0)
            resumable = self.run_folder is not None and self.subcommand == "fit"
            again = f"; the same command with --ckpt_path last {what} there" if resumable else ""
            exit_with_error(f"{stopped}{where}{again}", status=128 + stopped.number)
        raise SystemExit(0)

    # -- results

    def after_fit(self) -> None:
        """Print the run's folder and the commands that test it and show its curves."""
        if self.run_folder is not None and self.trainer.is_global_zero:
            folder = os.path.relpath(self.run_folder)
            if self._finished and (record := read_record(self.run_folder)) is not None:
                print(f"\n{_finished(self.run_folder, record)}")
            print(
                f"\nThe run lies in       {folder}\n"
                f"Test it with          python -m synflow_pl test --ckpt_path {folder}"
            )
            if any(isinstance(logger, TensorBoardLogger) for logger in self.trainer.loggers):
                runs = os.path.relpath(self.run_folder.parent)
                print(f"Look at all runs with tensorboard --logdir {runs}")

    def test(self, **kwargs: Any) -> None:
        """Run the test and keep its metrics.

        The run records which checkpoint was tested, and which options differed from training.

        Args:
            **kwargs: Arguments of ``Trainer.test``.
        """
        if self.run_folder is not None:
            tested = self._tested()
            for logger in self.trainer.loggers:
                if isinstance(logger, (RunCSV, RunTensorBoard)):
                    logger.tested = tested
        self.metrics = self.trainer.test(**kwargs)

    def _tested(self) -> Tested:
        """Return which checkpoint is tested; its name is empty for a network trained just now."""
        path = self.options.get("ckpt_path") if self.subcommand == "test" else None
        if path is None or self.run_folder is None:
            now = yaml.safe_load(self._config_text)
            return Tested("", None, self.trainer.global_step, changed_test_options(now, now))
        content = read(path)
        changed = changed_test_options(
            yaml.safe_load((self.run_folder / CONFIG).read_text()),
            yaml.safe_load(self._config_text),
        )
        name = os.path.relpath(path, self.run_folder)
        return Tested(
            name, int(content.get("epoch", 0)), int(content.get("global_step", 0)), changed
        )

    def predict(self, **kwargs: Any) -> None:
        """Predict, and write ``predictions.csv``.

        The file has for each image its number or file, the likeliest class and its probability.

        Args:
            **kwargs: Arguments of ``Trainer.predict``.

        Raises:
            ValueError: If there is more than one device.
        """
        if self.trainer.world_size > 1:
            raise ValueError(
                f"predict runs on one device, not {self.trainer.world_size}; "
                "add --trainer.devices 1"
            )
        batches = self.trainer.predict(**{**kwargs, "return_predictions": True})
        images = (
            self.datamodule.predict_files
            if self.datamodule.predict_dir is not None
            else itertools.count()
        )
        path = (self.run_folder or Path(".")) / "predictions.csv"
        write_predictions(path, images, torch.cat(batches))  # type: ignore[arg-type]


def _finished(run: Path, record: Training) -> str:
    return (
        f"{os.path.relpath(run)} has come to its end after {record.epochs} epochs ({record.steps} "
        "steps), so that nothing is left to train; train longer with other options "
        "(--trainer.max_epochs) and --ckpt_path of that run."
    )


def _expected_error(error: Exception) -> str | None:
    """Return the message of an error of this package or of the storage; ``None`` for any other."""
    if isinstance(
        error,
        (
            DeadNetwork,
            Disagreement,
            ValueError,
            OSError,
            FloatingPointError,
            MisconfigurationException,
        ),
    ):
        cause: BaseException | None = error
        # A full disk also raises an error when the logger is closed, which hides the first one.
        while cause is not None and not _is_ours(cause):
            cause = cause.__context__
        if cause is not None:
            return explain(cause)
    failed = storage_error(error)
    return write_error_message(None, failed) if failed is not None else None


def _is_ours(error: BaseException) -> bool:
    """Return whether this package raised an error, or Lightning did about its options."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, MisconfigurationException) or Path(raised_in).is_relative_to(
        Path(__file__).parents[1]
    )


def _set_default(config: Namespace, name: str, value: Any) -> None:
    """Set an argument of a class, if the class has it and the options leave it at its default."""
    argument = inspect.signature(import_class(config.class_path)).parameters.get(name)
    if argument is None:
        return
    default = list(argument.default) if isinstance(argument.default, tuple) else argument.default
    given = config.init_args.get(name) if "init_args" in config else None
    if given is None or given == default:
        config[f"init_args.{name}"] = value


def _class_name(config: Namespace) -> str:
    return str(config.class_path).rpartition(".")[2].lower()


def _scalar_arguments(name: str, config: Any) -> dict[str, Any]:
    """Return a class's arguments that are numbers or text, by ``settings/name/argument``."""
    arguments = config.get("init_args", {}) if isinstance(config, Namespace) else {}
    return {
        f"settings/{name}/{key}": value
        for key, value in arguments.items()
        if isinstance(value, (int, float, str, bool))
    }


def _settings(config: Namespace) -> dict[str, Any]:
    """Return the options by which runs are compared, for TensorBoard's HPARAMS table.

    Five options have a short name; the others are prefixed with ``settings/``, so that the table,
    which sorts by name, shows them after the five.
    """
    model, pruning, data, optimizer = (
        config.model,
        config.pruning,
        config.data,
        config.model.optimizer,
    )
    others = {
        "rounds": pruning.rounds,
        "effective_density": pruning.effective_density,
        "sanity": pruning.sanity,
        "at_epoch": pruning.at_epoch,
        "scope": pruning.scope,
        "schedule": pruning.schedule,
        "optimizer": _class_name(optimizer) if isinstance(optimizer, Namespace) else "default",
        "lr": optimizer.get("init_args", {}).get("lr")
        if isinstance(optimizer, Namespace)
        else None,
        "weight_decay": optimizer.get("init_args", {}).get("weight_decay")
        if isinstance(optimizer, Namespace)
        else None,
        "batch_size": data.init_args.get("batch_size"),
        "epochs": config.trainer.max_epochs,
        "precision": config.trainer.precision,
    }
    return {
        "data": _class_name(data),
        "density": pruning.density if pruning.density is not None else 1.0,
        "network": _class_name(model.network),
        "pruner": _class_name(pruning.pruner) if pruning.pruner else "dense",
        "seed": config.seed_everything,
        **{f"settings/{name}": value for name, value in others.items()},
        **_scalar_arguments("network", model.network),
        **_scalar_arguments("pruner", pruning.pruner),
    }
