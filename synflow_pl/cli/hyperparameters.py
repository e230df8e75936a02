"""Show the options of a run in TensorBoard's HPARAMS tab."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.cli import SaveConfigCallback

from synflow_pl.cli.run_names import class_name
from synflow_pl.training.visualization import show_hyperparameters

__all__ = ["ShowConfig"]


class ShowConfig(SaveConfigCallback):
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
        "flops": pruning.flops,
        "parameters": pruning.parameters,
        "latency": pruning.latency,
        "granularity": pruning.granularity,
        "sanity": pruning.sanity,
        "at_epoch": pruning.at_epoch,
        "scope": pruning.scope,
        "schedule": pruning.schedule,
        "optimizer": class_name(optimizer) if isinstance(optimizer, Namespace) else "default",
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
        "data": class_name(data),
        "density": pruning.density if pruning.density is not None else 1.0,
        "network": class_name(model.network),
        "pruner": class_name(pruning.pruner) if pruning.pruner else "dense",
        "seed": config.seed_everything,
        **{f"settings/{name}": value for name, value in others.items()},
        **_scalar_arguments("network", model.network),
        **_scalar_arguments("pruner", pruning.pruner),
    }
