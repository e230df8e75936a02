"""Keep the pruned weights of a network at zero during training, and store its masks."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from synflow_pl.flow import example_of
from synflow_pl.masks import Masks
from synflow_pl.training.averaged_models import averaged_models
from synflow_pl.training.collective_metrics import compute_on_all_ranks
from synflow_pl.training.compacted import Compacted, rebuild
from synflow_pl.training.distributed import Ranks
from synflow_pl.training.fit_checks import refuse_overlap
from synflow_pl.training.gradual_pruning import GradualPruning
from synflow_pl.training.introspection import find_network
from synflow_pl.training.mask_checkpoint import NetworkState, check_resumable
from synflow_pl.training.mask_hooks import MaskHooks
from synflow_pl.training.mask_updates import MaskUpdates
from synflow_pl.training.pruning_report import PruningReport
from synflow_pl.training.sharded_checkpoint import store_masks_in_checkpoints
from synflow_pl.training.sharded_fit import has_shards, shards_parameters
from synflow_pl.training.sharded_masks import ShardedMasks
from synflow_pl.training.sharded_norm import clip_over_all_ranks

__all__ = ["HoldMasks"]


class HoldMasks(Callback):
    """Hold the masks of one network: in training, in its averages, and in checkpoints.

    This is the base class of :class:`~synflow_pl.training.change_masks.ChangeMasks`, which chooses
    the masks, and so of :class:`synflow_pl.PruneAtInit`. A subclass applies masks with
    :meth:`_keep`, and changes :attr:`_gradual` in a gradual pruning and :attr:`_updates` in dynamic
    sparse training; this class stores all three in checkpoints and restores them.

    Args:
        network: Name of the attribute of the LightningModule that holds the network; ``None`` for
            ``network`` if there is such an attribute, else the whole module.
        compact: Whether the subclass calls :meth:`_compact`. Checkpoints store it, and training is
            only resumed with the same value.

    Attributes:
        masks: Masks of the network, or ``None`` before it is pruned.
    """

    def __init__(self, network: str | None, compact: bool) -> None:
        self.network, self.compact = network, compact
        self.masks: Masks | None = None
        self._pruned: weakref.ref[nn.Module] | None = None
        self._restored = False
        self._pruned_whole = False
        self._gradual, self._updates = GradualPruning(), MaskUpdates()
        self._ranks: Ranks
        self._report = PruningReport()
        self._hooks = MaskHooks(network)
        self._compacted: Compacted | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with the network in place of the weak reference, which has no pickle.

        The hooks belong to the optimisers of a fit, so a copy of the callback has none.
        """
        state = {**self.__dict__, "_pruned": self._pruned() if self._pruned is not None else None}
        del state["_hooks"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state, with a weak reference to the network."""
        network = state["_pruned"]
        self._hooks = MaskHooks(state["network"])
        self.__dict__.update(state, _pruned=weakref.ref(network) if network is not None else None)

    # -- state of one network and one fit

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the state that belongs to an earlier fit."""
        self._ranks = Ranks(trainer)
        self._hooks.release()
        self._restored, self._pruned_whole = False, False
        self._report = PruningReport(
            self.network or type(pl_module).__name__ if len(self._callbacks(trainer)) > 1 else ""
        )
        self._clear()

    def _clear(self) -> None:
        """Release what a subclass stores for one fit; called when a fit starts and when it ends."""

    def _reset(self) -> None:
        """Reset the state that belongs to an earlier network."""
        self.masks, self._pruned, self._restored = None, None, False
        self._gradual.state, self._updates.state = None, None
        self._report.clear()

    def _belongs(self, network: nn.Module) -> bool:
        """Return whether the masks are this network's."""
        return self._pruned is not None and self._pruned() is network

    def _callbacks(self, trainer: Trainer) -> list[HoldMasks]:
        """Return the callbacks of this kind in a Trainer, or this one if it is not among them."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # the trainer's connectors set it
        ours = [callback for callback in callbacks if isinstance(callback, HoldMasks)]
        return ours if self in ours else [self]

    # -- masks

    def _keep(self, trainer: Trainer, pl_module: LightningModule, masks: Masks) -> None:
        """Apply masks to the network and its averages, now and after every optimiser step.

        The masks become :attr:`masks`, sharded if the network is. They are written into the
        folder of the logger.
        """
        network, _ = find_network(pl_module, self.network)
        if has_shards(network):
            masks = ShardedMasks.of(masks, network)
        self.masks = masks
        masks.apply(network)
        for average in averaged_models(trainer):
            masks.apply(find_network(average, self.network)[0])
        self._hold(trainer, pl_module, masks)
        self._ranks.assert_equal(masks=masks.items(), weights=network.named_parameters())
        self._report.save_masks(trainer, self._ranks, masks)

    def _hold(self, trainer: Trainer, pl_module: LightningModule, masks: Masks) -> None:
        """Set pruned weights to zero after each optimiser step and after other writes to them."""
        callbacks = self._callbacks(trainer)
        networks = [find_network(pl_module, other.network)[0] for other in callbacks]
        self._hooks.attach(trainer, pl_module, masks, callbacks, networks)

    def _drop(self) -> None:
        """Remove the hooks and the masks, so that the next fit prunes the network again."""
        self._hooks.release()
        self.masks, self._pruned = None, None
        self._gradual.state, self._updates.state = None, None

    @contextmanager
    def _new_masks(self, network: nn.Module) -> Iterator[None]:
        """Reset the state for the masks that the context gives to a network.

        If the context raises an error, the network gets its weights back, and its masks are
        dropped: a second attempt must start from the same weights, without masks that were never
        diagnosed.
        """
        dense = [parameter.detach().clone() for parameter in network.parameters()]
        try:
            self._reset()
            self._pruned = weakref.ref(network)
            yield
        except BaseException:
            with torch.no_grad():
                for parameter, before in zip(network.parameters(), dense, strict=True):
                    parameter.copy_(before)
            self._drop()
            raise

    def _compact(
        self, trainer: Trainer, pl_module: LightningModule, masks: Masks, inputs: tuple[Tensor, ...]
    ) -> None:
        """Compact the network, and recreate the optimisers and wrappers of its parameters."""
        network, _ = find_network(pl_module, self.network)
        self._hooks.release()
        self._compacted = Compacted(network, masks, example_of(network, None, inputs))
        rebuild(trainer, pl_module)
        self._hold(trainer, pl_module, self._compacted.masks)
        rank_zero_info(self._compacted.summary)

    # -- training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start a fit without the state of an earlier one.

        Raises:
            ValueError: If two callbacks hold masks of the same weights.
        """
        if isinstance(trainer.strategy, ModelParallelStrategy):
            store_masks_in_checkpoints(trainer.strategy)
            clip_over_all_ranks(trainer)
        if stage != "fit":
            return
        # Prevents a deadlock of a rank that reads a metric with a rank that compares masks.
        compute_on_all_ranks(trainer)
        self._start(trainer, pl_module)
        refuse_overlap(pl_module, (other.network for other in self._callbacks(trainer)))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply the masks that the network already has, or reset those of another network."""
        network, _ = find_network(pl_module, self.network)
        if not self._belongs(network):
            if self._restored:
                self._pruned = weakref.ref(network)
            else:
                self._reset()
        # Must come first: a rank with masks and one without make different collective calls below,
        # and would deadlock.
        self._ranks.assert_equal(masks=self.masks.items() if self.masks is not None else ())
        if self.masks is not None:
            reason = (
                "the checkpoint's masks are kept"
                if self._restored
                else "the network keeps its masks"
            )
            if not self._pruned_whole:
                self._report.info(f"not again; {reason} (density {self.masks.density:.6g}).")
            self._keep(trainer, pl_module, self.masks)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set pruned weights to zero if something wrote to them since the last optimiser step."""
        self._hooks.check_batch(batch_idx)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Set the gradients of pruned weights to zero.

        Lightning calls this before it clips gradients, so norms count kept weights only.
        """
        self._hooks.mask_gradients(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Set pruned weights to zero if something other than an optimiser step writes to them."""
        self._hooks.check_written()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Set pruned weights to zero if a hook wrote to them before the validation."""
        if batch_idx == 0 and trainer.state.fn == TrainerFn.FITTING:
            self._hooks.check()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set pruned weights to zero if something wrote to them after the last optimiser step."""
        self._hooks.check()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the optimisers, and restore the full shapes of a compacted network."""
        self._finish()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Clean up as :meth:`teardown` does, which Lightning does not call after an exception."""
        self._finish()

    def _finish(self) -> None:
        self._hooks.check()
        self._hooks.release()
        if self._compacted is not None:
            self._compacted.restore()
            self._compacted = None
        self._clear()

    # -- checkpoints

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the masks in the checkpoint, under a key that does not depend on the class."""
        _, prefix = find_network(pl_module, self.network)
        state = NetworkState(self.masks, self._gradual.state, self.compact, self._updates.state)
        state.store(checkpoint, prefix, alone=len(self._callbacks(trainer)) == 1)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the masks and the state of a pruning during training, if a checkpoint has them.

        Raises:
            ValueError: If training cannot be resumed from it with these callbacks.
        """
        network, prefix = find_network(pl_module, self.network)
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting:
            others = self._callbacks(trainer)
            prefixes = [find_network(pl_module, other.network)[1] for other in others]
            check_resumable(trainer, checkpoint, prefix, prefixes, compact=self.compact)
        state = NetworkState.load(checkpoint, prefix)
        if fitting and shards_parameters(trainer):
            self._restore_shards(trainer, pl_module, state)
        elif state.masks is not None and has_shards(network):
            self._reset()
            self.masks = ShardedMasks.of(state.masks, network)
            self._pruned = weakref.ref(network)
        elif state.masks is not None:
            if (
                self.masks is None
                or not self._belongs(network)
                or not _equal(self.masks, state.masks)
            ):
                self._reset()
                self.masks = state.masks
            self._pruned, self._restored = weakref.ref(network), fitting
            self._gradual.state, self._updates.state = state.gradual, state.updates
        elif fitting or (
            self.masks is not None and self._belongs(network) and not _holds(network, self.masks)
        ):
            self._reset()

    def _restore_shards(
        self, trainer: Trainer, pl_module: LightningModule, state: NetworkState
    ) -> None:
        """Apply the masks of a checkpoint that is restored after the fit has started.

        If it has none, its weights get the masks that this fit has chosen.
        """
        masks = state.masks if state.masks is not None else self.masks
        self._restored, self._gradual.state = state.masks is not None, state.gradual
        if masks is not None:
            self._pruned = weakref.ref(find_network(pl_module, self.network)[0])
            self._keep(trainer, pl_module, masks)
            if self._restored:
                self._report.info(
                    "not again; the checkpoint's masks are kept (density"
                    f" {masks.density if self.masks is None else self.masks.density:.6g})."
                )


def _equal(some: Masks, others: Masks) -> bool:
    return some.keys() == others.keys() and all(
        torch.equal(mask.cpu(), others[name].cpu()) for name, mask in some.items()
    )


def _holds(network: nn.Module, masks: Masks) -> bool:
    """Return whether all pruned weights of a network are zero."""
    return not any(
        bool(parameter[~mask.to(parameter.device)].any())
        for parameter, mask in masks.parameters(network)
    )
