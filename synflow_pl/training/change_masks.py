"""Choose the masks of a network, at once or step by step during its training, and report them."""

from __future__ import annotations

import time
import weakref
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch.optim import Optimizer

from synflow_pl.diagnosis import DeadNetwork, Diagnosis, MaskHistory
from synflow_pl.masks import Masks
from synflow_pl.pruners.drop_and_grow import DropAndGrow
from synflow_pl.training.checkpoints import attribute_of
from synflow_pl.training.fit_checks import check_resumed
from synflow_pl.training.hold_masks import HoldMasks
from synflow_pl.training.introspection import find_network
from synflow_pl.training.mask_chooser import Fit, MaskChooser
from synflow_pl.training.mask_updates import UpdateState, start_from_zero
from synflow_pl.training.pruning_report import diagnose_rounds

__all__ = ["ChangeMasks"]


class ChangeMasks(HoldMasks):
    """Choose the masks of one network, change them during its training, and report the changes.

    During the training the network is pruned after some epochs, a gradual pruning completes its
    rounds, and dynamic sparse training updates the masks. This is the base class of
    :class:`synflow_pl.PruneAtInit`, which has the options and prunes when a fit starts: it sets
    :attr:`_chooser` in :meth:`_clear`, and calls :meth:`_begin` or :meth:`_prune_shards`.

    Args:
        network: As in :class:`~synflow_pl.training.hold_masks.HoldMasks`.
        compact: As in :class:`~synflow_pl.training.hold_masks.HoldMasks`.
        method: Method of dynamic sparse training; ``None`` for masks that are not updated.
        at_epoch: Number of epochs of training before the network is pruned, at least 0.
        on_collapse: ``"error"`` or ``"warn"``, for a network that is disconnected.
        spectra: Whether the diagnosis includes spectra, as in :func:`synflow_pl.diagnose`.

    Attributes:
        diagnosis: Diagnosis of the pruned network, or ``None`` if this callback has not pruned it.
        survival: History of the masks over the rounds, or ``None``.
        seconds: Duration of the pruning, in seconds.
    """

    _chooser: MaskChooser

    def __init__(
        self,
        network: str | None,
        compact: bool,
        *,
        method: DropAndGrow | None,
        at_epoch: int,
        on_collapse: str,
        spectra: bool,
    ) -> None:
        super().__init__(network, compact)
        self._moving = method
        self.at_epoch = at_epoch
        self.on_collapse = on_collapse
        self.spectra = spectra
        self.diagnosis: Diagnosis | None = None
        self.survival: MaskHistory | None = None
        self.seconds = 0.0

    def _reset(self) -> None:
        super()._reset()
        self.diagnosis, self.survival, self.seconds = None, None, 0.0

    @property
    def _pruner_during_training(self) -> str | None:
        """Name of the pruner if it changes masks during training."""
        if self._moving is not None:
            return self._moving.name
        pruner = self._chooser.pruner
        return pruner.name if pruner is not None and pruner.end_fraction is not None else None

    # -- hooks of the training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the epoch at which a resumed training starts, and compute the last step of pruning.

        Raises:
            ValueError: If the training resumes without masks after the epoch of the pruning.
        """
        if self._chooser.prunes and self.masks is None:
            check_resumed(trainer, self.at_epoch)
        if self._chooser.end_fraction is not None:
            self._gradual.plan(trainer, self._chooser.end_fraction, self.at_epoch)
        if self._moving is not None:
            self._updates.plan(trainer, self._moving, self.at_epoch)
            if self.masks is not None and self._updates.state is None:
                self._updates.begin(trainer, self._moving)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune if ``at_epoch`` is this epoch."""
        unpruned = self._chooser.prunes and self.masks is None
        if unpruned and trainer.current_epoch == self.at_epoch:
            self._begin(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Store the dense gradients if masks are updated at this step, before they are masked."""
        if self._moving is not None and self.masks is not None:
            network, _ = find_network(pl_module, self.network)
            self._updates.collect(trainer, self._moving, optimizer, network, self.masks)
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the masks, or prune further, if that is due."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._updates.collected and self.masks is not None:
            self._update(self._fit(trainer, pl_module), self.masks)
        if self._chooser.end_fraction is None or self.masks is None:
            return
        due = self._gradual.due(trainer, self._chooser.rounds)
        if due > self._gradual.done:
            self._prune_further(self._fit(trainer, pl_module), self.masks, due)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if training ended before the pruning was completed."""
        super().on_train_end(trainer, pl_module)
        rounds = self._chooser.rounds
        if self.masks is None:
            if self._chooser.prunes:
                self._report.warn(
                    f"training ended before epoch {self.at_epoch}, so nothing was pruned"
                )
        elif self._chooser.end_fraction is not None and self._gradual.unfinished(rounds):
            self._report.warn(
                f"training ended after round {self._gradual.done} of {rounds}, at density"
                f" {self.masks.density:.6g}"
            )
        elif self._moving is not None and (state := self._updates.state) is not None:
            self._show_updates(self._fit(trainer, pl_module), self.masks, self._moving, state)

    # -- changes of the masks

    def _fit(self, trainer: Trainer, pl_module: LightningModule) -> Fit:
        network, prefix = find_network(pl_module, self.network)
        return Fit(trainer, pl_module, network, attribute_of(prefix), self._ranks, self._report)

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune now, or begin a gradual pruning with masks that keep every weight."""
        fit = self._fit(trainer, pl_module)
        with self._new_masks(fit.network):
            if self._chooser.end_fraction is not None:
                self._gradual.begin(trainer)
                self._keep(trainer, pl_module, self._chooser.keep_all(fit))
            else:
                self._prune_at_once(fit)
                if self._moving is not None:
                    self._updates.begin(trainer, self._moving)

    def _prune_at_once(self, fit: Fit) -> None:
        """Choose and apply the masks, and report them."""
        started = time.perf_counter()
        self.survival = self._chooser.history() if fit.trainer.is_global_zero else None
        masks = self._chooser.choose(fit, self.survival)
        self.seconds = time.perf_counter() - started
        self._ranks.broadcast(fit.network.parameters())  # a sanity check may reinitialise them
        self._keep(fit.trainer, fit.pl_module, masks)
        self._diagnose(fit, masks, f"{self._chooser.source} kept", f" in {self.seconds:.1f} s")

    def _prune_shards(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune a network that no rank holds whole."""
        network, _ = find_network(pl_module, self.network)
        masks = self._chooser.choose_by_shards(network, self._ranks)
        self._reset()
        self._pruned = weakref.ref(network)
        self._keep(trainer, pl_module, masks)
        assert self.masks is not None
        self._report.info(
            f"{self._chooser.source} kept {self.masks.kept:,} of {self.masks.total:,} weights"
            f" (density {self.masks.density:.6g}), shard by shard."
        )

    def _prune_further(self, fit: Fit, masks: Masks, due: int) -> None:
        """Complete the rounds of a gradual pruning that are due."""
        masks = self._chooser.choose_round(fit, masks, done=self._gradual.done, due=due)
        self._keep(fit.trainer, fit.pl_module, masks)
        self._gradual.complete(due)
        self._report.show_round(fit.trainer, due, masks.density)
        if due == self._chooser.rounds:
            how, when = f"{self._chooser.source} has kept", f" by step {fit.trainer.global_step}"
            try:
                self._diagnose(fit, masks, how, when)
            except DeadNetwork:
                # Another fit of the network must not train it disconnected.
                self._drop()
                raise

    def _update(self, fit: Fit, masks: Masks) -> None:
        """Drop and grow weights, and report the network that results."""
        assert self._moving is not None
        updated, new = self._updates.choose(self._moving, self._ranks, fit.network, masks)
        start_from_zero(fit.trainer.optimizers, fit.network, new)
        self._keep(fit.trainer, fit.pl_module, updated)
        self.survival = None  # the rounds of the initial masks explain these masks no longer
        diagnosis = self._examine(fit, updated)
        self._report.show_update(fit.trainer, diagnosis, self._updates.fraction)
        try:
            self._report.check_collapse(diagnosis, self.on_collapse, advice="")
        except DeadNetwork:
            # Another fit of the network must not train it disconnected.
            self._drop()
            raise

    # -- reports

    def _show_updates(
        self, fit: Fit, masks: Masks, method: DropAndGrow, state: UpdateState
    ) -> None:
        """Report the network after all updates of its masks, at the end of training."""
        if state.done:
            how = f"{method.name} has kept"
            when = f" through {state.done:,} updates that replaced {state.replaced:,} weights"
            self._show(fit, masks, how, when)
        else:
            self._report.warn(
                f"{method.name} has not updated the masks, since training made no step that"
                f" is a multiple of delta_t: {method.delta_t} before t_end:"
                f" {method.end_fraction}"
            )

    def _diagnose(self, fit: Fit, masks: Masks, how: str, when: str) -> None:
        """Diagnose the pruned network, and report it; an error if it must not be disconnected."""
        diagnosis = self._show(fit, masks, how, when)
        self._report.check_collapse(diagnosis, self.on_collapse, self._chooser.rounds_advice)

    def _show(self, fit: Fit, masks: Masks, how: str, when: str) -> Diagnosis:
        """Diagnose the pruned network, and report it."""
        diagnosis = self._examine(fit, masks)
        inputs, notes = self._chooser.inputs, self._chooser.notes
        self._report.show(fit.trainer, fit.network, masks, diagnosis, inputs, how, when, notes)
        return diagnosis

    def _examine(self, fit: Fit, masks: Masks) -> Diagnosis:
        """Diagnose the pruned network on rank 0, for every rank, and store the diagnosis."""

        def diagnose() -> Diagnosis:
            inputs = self._chooser.example(fit)
            return diagnose_rounds(fit.network, masks, inputs, self.survival, self.spectra)

        self.diagnosis = diagnosis = fit.ranks.run_on_rank_zero(diagnose)
        return diagnosis
