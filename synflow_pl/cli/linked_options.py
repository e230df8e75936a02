"""Set options that follow from other options, such as the number of classes of the network."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from jsonargparse import Namespace

from synflow_pl.cli.data_properties import DataProperties
from synflow_pl.cli.errors import import_class, refuse_function

__all__ = ["set_linked_options"]


def set_linked_options(options: Namespace, default_name: str, data: DataProperties) -> None:
    """Set options that follow from others, where a class has them and they are at the default.

    The network gets the data's ``input_shape`` and ``num_classes``, the classifier gets its
    ``num_classes``, and the schedule gets the number of epochs. A logger that would choose a random
    name for the run gets the run's name.

    Args:
        options: Options of the subcommand, which are changed.
        default_name: Name of the run if the options give none.
        data: Shape and classes of the images.

    Raises:
        ValueError: If the network is given as a function, or the shape or the number of classes is
            unknown.
    """
    model = options.model
    refuse_function(model.network.class_path)
    model.num_classes = data.num_classes
    _set_default(model.network, "num_classes", lambda: data.num_classes)
    _set_default(model.network, "input_shape", lambda: list(data.input_shape))
    if isinstance(model.scheduler, Namespace):
        _set_default(model.scheduler, "epochs", lambda: options.trainer.max_epochs)
    configured = options.trainer.get("logger")
    for logger in configured if isinstance(configured, list) else [configured]:
        if isinstance(logger, Namespace):
            for name in ("name", "run_name"):  # of W&B and of MLflow
                if logger.get("init_args", {}).get(name, "") is None:
                    logger.init_args[name] = options.get("run") or default_name


def _set_default(config: Namespace, name: str, value: Callable[[], Any]) -> None:
    """Set an argument of a class, if the class has it and the options leave it at its default."""
    argument = inspect.signature(import_class(config.class_path)).parameters.get(name)
    if argument is None:
        return
    default = list(argument.default) if isinstance(argument.default, tuple) else argument.default
    given = config.init_args.get(name) if "init_args" in config else None
    if given is None or given == default:
        config[f"init_args.{name}"] = value()
