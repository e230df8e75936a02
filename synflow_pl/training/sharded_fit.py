"""Prune before a strategy shards the network, and refuse what a sharded network cannot do.

Under ``ModelParallelStrategy`` Lightning calls ``setup()``, then ``configure_model()``, in which
the module shards its network, then ``on_fit_start()``, and restores a checkpoint last. The network
is pruned while it is whole, between the first two.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.tensor import DTensor

from synflow_pl.training.rewinding import RewindPoint

__all__ = [
    "call_after_setup",
    "check_sharded_fit",
    "has_shards",
    "is_whole",
    "on_root_device",
    "resumed_path",
    "shards_parameters",
]


def shards_parameters(trainer: Trainer) -> bool:
    """Return whether the strategy is one that may shard parameters and can be pruned with.

    Args:
        trainer: Trainer of the network.
    """
    return isinstance(trainer.strategy, ModelParallelStrategy)


def has_shards(network: nn.Module) -> bool:
    """Return whether a parameter of the network is sharded.

    Args:
        network: Any module.
    """
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


def is_whole(network: nn.Module) -> bool:
    """Return whether the network has parameters, and this rank holds all of them with their values.

    Args:
        network: Any module.
    """
    parameters = list(network.parameters())
    return bool(parameters) and not any(isinstance(p, DTensor) or p.is_meta for p in parameters)


def check_sharded_fit(
    trainer: Trainer, *, compact: bool, at_epoch: int, during: str | None
) -> None:
    """Refuse what cannot be done with a network whose parameters are sharded.

    Args:
        trainer: Trainer that is about to train.
        compact: Whether a smaller network is trained.
        at_epoch: Epoch before which the network is pruned.
        during: Name of a pruner that changes masks during training, or ``None``.

    Raises:
        ValueError: If there is such an option or callback, naming it.
    """
    strategy = type(trainer.strategy).__name__
    if compact:
        raise ValueError(
            f"compact: true cannot be combined with {strategy}, whose parameters are sharded; leave"
            " it out, or compact the trained network with the command compact"
        )
    if at_epoch or during is not None:
        what = f"at_epoch: {at_epoch}" if at_epoch else during
        raise ValueError(
            f"{what} prunes during training, when {strategy} has sharded the network, which is not"
            " supported; prune when the fit starts, or train with ddp"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # the trainer's connectors set it
        if isinstance(callback, (WeightAveraging, StochasticWeightAveraging, RewindPoint)):
            raise ValueError(
                f"{type(callback).__name__} copies the whole network, which {strategy} shards;"
                " leave the callback out, or train with ddp"
            )


def resumed_path(trainer: Trainer) -> Any:
    """Return the checkpoint from which this fit will resume, on every rank; ``None`` if it starts.

    Every rank has to call this function, in ``setup()``.

    Args:
        trainer: Trainer that is calling ``setup()`` of its callbacks.
    """
    # Lightning sets trainer.ckpt_path when it restores, which is after configure_model(). Until
    # then the path is only in a local variable of the method that calls the hooks.
    frame, path = inspect.currentframe(), None
    while frame is not None and path is None:
        if frame.f_code is Trainer._run.__code__ and frame.f_locals.get("self") is trainer:
            path = frame.f_locals["ckpt_path"]
        frame = frame.f_back
    return trainer.strategy.broadcast(path)


def call_after_setup(pl_module: LightningModule, function: Callable[[], None]) -> None:
    """Call a function once, right after the module's next ``setup()``.

    Args:
        pl_module: Module whose ``setup()`` has not been called yet in this fit.
        function: Function that is called before ``configure_model()``.
    """
    setup, own = pl_module.setup, "setup" in vars(pl_module)

    @functools.wraps(setup)
    def wrapped(stage: str) -> None:
        if own:
            pl_module.setup = setup  # type: ignore[method-assign]
        else:
            del pl_module.setup
        setup(stage)
        function()

    pl_module.setup = wrapped  # type: ignore[method-assign]


@contextmanager
def on_root_device(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Move a module to the device of its training on rank 0, which scores it there, and back.

    Args:
        trainer: Trainer of the module.
        pl_module: Module with whole parameters.
    """
    first = next(pl_module.parameters(), None)
    if first is None or not trainer.is_global_zero:
        yield
        return
    # nn.Module.to leaves the attribute ``device`` alone, which Lightning has already set.
    nn.Module.to(pl_module, trainer.strategy.root_device)
    try:
        yield
    finally:
        nn.Module.to(pl_module, first.device)
