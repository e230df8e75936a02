"""Checks of a fit: whether its Trainer, checkpoint and callbacks allow a network to be pruned."""

from __future__ import annotations

from collections.abc import Iterable

from pytorch_lightning import LightningModule, Trainer

from synflow_pl.training.checkpoints import attribute_of
from synflow_pl.training.introspection import find_network
from synflow_pl.training.sharded_fit import shards_parameters

__all__ = ["check_resumed", "check_trainer", "refuse_overlap", "refuse_shards", "too_late"]


def check_trainer(trainer: Trainer, at_epoch: int) -> None:
    """Refuse a Trainer that shards the network or ends before the network is pruned.

    Args:
        trainer: Trainer that is about to train.
        at_epoch: Epoch before which the network is pruned.

    Raises:
        ValueError: If the Trainer does so.
    """
    refuse_shards(trainer)
    if at_epoch and trainer.max_epochs not in (None, -1) and at_epoch >= trainer.max_epochs:
        raise ValueError(
            f"at_epoch: {at_epoch} is not before the end of training at"
            f" max_epochs={trainer.max_epochs}; prune earlier or train longer"
        )


def refuse_shards(trainer: Trainer) -> None:
    """Refuse a strategy that shards the network or the state of the optimiser in its own way.

    ModelParallelStrategy is supported.

    Args:
        trainer: Trainer that is about to train.

    Raises:
        ValueError: If the strategy does so.
    """
    # Lightning restores a checkpoint after the strategy's setup for exactly these strategies.
    if trainer.strategy.restore_checkpoint_after_setup and not shards_parameters(trainer):
        raise ValueError(
            f"{type(trainer.strategy).__name__} shards parameters or the optimiser's state, and a"
            " shard of it cannot be pruned; use ddp, or shard with ModelParallelStrategy (overlay"
            " trainer/fsdp), or drop the pruner"
        )


def check_resumed(trainer: Trainer, at_epoch: int) -> None:
    """Refuse to resume a network without masks after the time at which it is pruned.

    Args:
        trainer: Trainer that has resumed.
        at_epoch: Epoch before which the network is pruned.

    Raises:
        ValueError: If the training resumes in that epoch or later.
    """
    epoch, within = trainer.current_epoch, trainer.fit_loop.restarted_mid_epoch
    if epoch > at_epoch or (epoch == at_epoch and within):
        raise ValueError(too_late(trainer))


def refuse_overlap(pl_module: LightningModule, names: Iterable[str | None]) -> None:
    """Refuse two callbacks that would prune the same weights.

    Args:
        pl_module: Module of the networks.
        names: Option ``network`` of each callback.

    Raises:
        ValueError: If there are such callbacks, naming their networks.
    """
    seen: dict[int, str] = {}
    for option in names:
        network, prefix = find_network(pl_module, option)
        name = attribute_of(prefix) or type(pl_module).__name__
        for parameter in network.parameters():
            if (other := seen.get(id(parameter))) is not None:
                raise ValueError(
                    f"two PruneAtInit prune the same weights, those of {other!r} and of {name!r};"
                    " leave one out, or give each a network of its own (network=)"
                )
        seen.update({id(parameter): name for parameter in network.parameters()})


def too_late(trainer: Trainer) -> str:
    """Return the message that a resumed network would be pruned in the middle of its training.

    Args:
        trainer: Trainer that resumes from a checkpoint without masks.
    """
    return (
        f"{str(trainer.ckpt_path)!r} was trained without masks and would be pruned in mid-training;"
        " resume dense with the overlay pruners/dense, prune at an epoch that lies ahead"
        " (at_epoch), or start anew without ckpt_path"
    )
