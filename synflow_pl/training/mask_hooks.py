"""Hooks that keep the pruned weights of one network at zero during a fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from synflow_pl.masks import Masks
from synflow_pl.optimizer_hook import Hold
from synflow_pl.training.averaged_models import averaged_models
from synflow_pl.training.introspection import find_network
from synflow_pl.training.sharded_masks import ShardedMasks, ShardedZeros
from synflow_pl.training.zeros import Zeros, tensors_outside_networks

__all__ = ["MaskHooks"]


class MaskHooks:
    """Hooks of the optimisers and of the network, which set pruned weights to zero during a fit.

    Args:
        network: Name of the attribute of the LightningModule that holds the network, as
            :func:`~synflow_pl.training.introspection.find_network` takes it.

    Attributes:
        holds: Handles of the optimisers' hooks, by the ``id`` of the optimiser.
    """

    def __init__(self, network: str | None) -> None:
        self.network = network
        self.holds: dict[int, Hold] = {}
        self._zeros: Zeros | None = None

    def attach(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        masks: Masks,
        callbacks: Sequence[Callback],
        networks: Sequence[nn.Module],
    ) -> None:
        """Set pruned weights to zero after each optimiser step and after other writes to them.

        Masks of an earlier call are replaced.

        Args:
            trainer: Trainer with the optimisers.
            pl_module: Module that is trained.
            masks: Masks of the network, sharded if the network is.
            callbacks: Callbacks that hold masks, in which no averages of weights are searched for.
            networks: Networks of these callbacks, in which none are searched for either.
        """
        network, prefix = find_network(pl_module, self.network)
        self._remove_holds()
        for optimizer in trainer.optimizers:
            # An optimiser that does not call Optimizer.__init__ has no hooks; pruned weights that
            # it writes are set to zero after the batch.
            if hasattr(optimizer, "_optimizer_step_post_hooks"):
                self.holds[id(optimizer)] = masks.hold(network, optimizer)
        if self._zeros is None:
            self._zeros = (
                ShardedZeros(prefix)
                if isinstance(masks, ShardedMasks)
                else self._make_zeros(trainer, pl_module, prefix, callbacks, networks)
            )
            self._zeros.written = len(self.holds) < len(trainer.optimizers)
        self._zeros.hold(network, masks)

    def _make_zeros(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prefix: str,
        callbacks: Sequence[Callback],
        networks: Sequence[nn.Module],
    ) -> Zeros:
        """Return what checks the network and the averages of its weights."""
        owned = (network for network in networks if network is not pl_module)
        skip = {
            *map(id, callbacks),
            *(id(module) for network in owned for module in network.modules()),
        }

        def averages() -> Iterator[nn.Module]:
            return (find_network(average, self.network)[0] for average in averaged_models(trainer))

        return Zeros(prefix, lambda: tensors_outside_networks(trainer, pl_module, skip), averages)

    def release(self) -> None:
        """Remove the hooks of the optimisers and of the network."""
        self._remove_holds()
        if self._zeros is not None:
            self._zeros.release()
        self._zeros = None

    def _remove_holds(self) -> None:
        for hold in self.holds.values():
            hold.remove()
        self.holds.clear()

    def mask_gradients(self, optimizer: Optimizer) -> None:
        """Set the gradients of pruned weights to zero.

        Args:
            optimizer: Optimiser that is about to step.
        """
        if hold := self.holds.get(id(optimizer)):
            hold.mask_gradients()

    def check(self) -> None:
        """Set pruned weights to zero where they are not, and warn once, naming a parameter."""
        if self._zeros is not None:
            self._zeros.check()

    def check_batch(self, index: int) -> None:
        """Check at a training batch, if it is one of the first or something has written weights.

        Args:
            index: Index of the batch in its epoch.
        """
        if self._zeros is not None:
            self._zeros.check_batch(index)

    def check_written(self) -> None:
        """Check if something other than an optimiser step has written to pruned weights."""
        if self._zeros is not None and self._zeros.written:
            self._zeros.check()
