"""Choose the run that a command resumes, and apply and check the settings of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from pytorch_lightning import LightningModule, seed_everything
from pytorch_lightning.utilities import rank_zero_only

from synflow_pl.cli import EVALUATIONS, resume, slurm
from synflow_pl.cli.checkpoint_overrides import checkpoint_overrides, warn_of_overrides
from synflow_pl.cli.command import Command
from synflow_pl.cli.run_summary import finished_message
from synflow_pl.cli.untrained import warn_untrained
from synflow_pl.runs import CONFIG, find_run_folder
from synflow_pl.runs.training_record import read_record
from synflow_pl.training import find_checkpoint
from synflow_pl.training.checkpoint_connector import refuse
from synflow_pl.training.checkpoints import read_outline

__all__ = ["RunSelection", "is_rank_zero", "lock_or_raise", "run_of_checkpoint"]


def is_rank_zero() -> bool:
    """Return whether this is the process of rank 0."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def lock_or_raise(run: Path) -> None:
    """Lock a run until this process ends.

    Args:
        run: Folder of the run.

    Raises:
        ValueError: If another process holds the lock.
    """
    if not resume.acquire_run(run):
        raise ValueError(
            f"run: another process works in {run}; wait for it or end it, or give another --run"
        )


def run_of_checkpoint(options: Namespace, root: Path) -> Path | None:
    """Return the checkpoint's own run if ``--run`` gives its name, so that it is resumed.

    Args:
        options: Options of the subcommand.
        root: Folder that contains ``lightning_logs``.
    """
    name, checkpoint = options.get("run"), options.get("ckpt_path")
    folder = find_run_folder(Path(checkpoint)) if name and checkpoint else None
    own = folder is not None and (folder.resolve().parent, folder.name) == (
        (root / "lightning_logs").resolve(),
        name,
    )
    return folder if own else None


class RunSelection:
    """Run that a command resumes, and the options that its checkpoint overrides.

    Args:
        command: Parsed command line, whose options the methods change.

    Attributes:
        resumed_run: Run that is resumed, locked for this process; ``None`` for a new run.
        recorded_config: Options for config.yaml where a checkpoint overrides those of the command.
        finished: Whether the checkpoint is the end of its training, so that nothing is left to
            train.
    """

    def __init__(self, command: Command) -> None:
        self._command = command
        self._typed_settings: dict[str, Any] = {}
        self.resumed_run: Path | None = None
        self.recorded_config: str | None = None
        self.finished = False

    def select(self) -> None:
        """Select the run for ``--ckpt_path last``, or the run of this requeued SLURM job.

        Raises:
            ValueError: If the run has ended and kept no checkpoint.
        """
        command, options = self._command, self._command.options
        requested = command.name == "fit" and options.get("ckpt_path") == "last"
        if requested:
            options["ckpt_path"] = None
        if (
            command.name != "fit"
            or options.trainer.get("fast_dev_run")
            or not (requested or slurm.restarted())
        ):
            return
        if not is_rank_zero():
            return  # rank 0 selects the run and passes its folder on
        name = options.get("run")
        root = command.root / "lightning_logs"
        run, remarks = resume.find_run_to_resume(
            root, resume.settings(command.config_text), name, requested=requested
        )
        if run is not None:
            self._resume(run)
            return
        same = root / (name or command.default_name)
        if requested and (same / CONFIG).is_file() and not remarks:
            was, now = resume.settings_of(same), resume.settings(command.config_text)
            if keys := resume.differing_options(was, now):
                remarks = [f"{same} has {keys[0]}={was.get(keys[0])}, not {now.get(keys[0])}"]
        if requested:
            reasons = "".join(f"; {remark}" for remark in remarks)
            print(f"No run with these settings to resume, so a new one is begun{reasons}.")

    def _resume(self, run: Path) -> None:
        """Resume a run from its last checkpoint, or start it again if it has none."""
        self.resumed_run = run
        self._command.options["run"] = run.name
        try:
            self._command.options["ckpt_path"] = str(find_checkpoint(run))
        except FileNotFoundError:
            record = read_record(run)
            if record is not None and record.ended:
                raise ValueError(
                    f"{finished_message(run, record)} It kept no checkpoint."
                ) from None
            resume.remove_training_files(run)
            print(
                f"{run} was stopped before its first checkpoint; it starts again there, with"
                " pruning."
            )

    def apply_checkpoint_settings(self) -> None:
        """Replace the options that the checkpoint overrides by the settings of its run.

        So config.yaml states the options that are in effect. A run that has ended, with the same
        settings, is not trained again.

        Raises:
            ValueError: If another process works in the run that has ended.
        """
        command = self._command
        text = command.config_text
        self._typed_settings = resume.settings(text)
        path = command.options.get("ckpt_path")
        run = find_run_folder(Path(path)) if path is not None else None
        if path is None or run is None or command.name != "fit":
            return
        content = read_outline(path)
        if not isinstance(content, Mapping):
            return  # check_checkpoint raises an error about its content
        same = (
            self.resumed_run is not None
            or run_of_checkpoint(command.options, command.root) is not None
        )
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
                command.replace_options(effective)
            self.recorded_config = yaml.safe_dump(effective, sort_keys=False)
            if "seed_everything" in keys:
                seed_everything(int(command.options.seed_everything), workers=True)
        record = read_record(run)
        if record is not None and record.ended and record.steps == content.get("global_step"):
            here = same or command.options.get("run") is None
            if here and not resume.differing_options(
                settings, resume.settings(self.recorded_config or text)
            ):
                self.finished, self.resumed_run = True, run
                command.options["run"] = run.name
                if is_rank_zero():
                    lock_or_raise(run)

    def check_checkpoint(self, model: LightningModule, configured: Any) -> None:
        """Check, before a run is opened, that the checkpoint can be loaded.

        A note is printed for each option that the checkpoint overrides.

        Args:
            model: The classifier.
            configured: Return value of the classifier's ``configure_optimizers``; ``None`` for an
                evaluation.

        Raises:
            ValueError: If the checkpoint does not fit the network or the optimisers.
        """
        command, options = self._command, self._command.options
        path = options.get("ckpt_path")
        if command.name in EVALUATIONS:
            warn_untrained(command.name, options)
        if path is None:
            return
        content = read_outline(path)
        optimizers = None
        if configured is not None:
            optimizers = (
                configured[0]
                if isinstance(configured, (tuple, list))
                else [configured["optimizer"] if isinstance(configured, dict) else configured]
            )
        refuse(path, content, model, optimizers)
        run = find_run_folder(Path(path))
        if run is not None and run != self.resumed_run:
            trains = command.name == "fit"
            same = trains and run_of_checkpoint(options, command.root) is not None
            was, now = resume.settings_of(run), self._typed_settings
            keys = checkpoint_overrides(was, now, content, trains=trains, same_run=same)
            warn_of_overrides(was, now, keys, trains=trains)
