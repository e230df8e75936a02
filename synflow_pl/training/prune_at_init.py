"""PruneAtInit: prune a network when a fit starts or during it, and keep pruned weights at zero."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn

from synflow_pl.masks import Masks
from synflow_pl.pruners import Pruner
from synflow_pl.pruners.drop_and_grow import DropAndGrow
from synflow_pl.pruners.sanity import SANITY
from synflow_pl.training.callback_options import check_now, make_options
from synflow_pl.training.change_masks import ChangeMasks
from synflow_pl.training.checkpoints import find_checkpoint
from synflow_pl.training.compacted import check_compactable
from synflow_pl.training.fit_checks import check_trainer, too_late
from synflow_pl.training.introspection import find_network
from synflow_pl.training.mask_checkpoint import NetworkState
from synflow_pl.training.mask_chooser import MaskChooser
from synflow_pl.training.monitors import check_monitors
from synflow_pl.training.sharded_fit import (
    call_after_setup,
    check_sharded_fit,
    is_whole,
    on_root_device,
    resumed_path,
    shards_parameters,
)
from synflow_pl.training.tuner_order import run_before_tuners

__all__ = ["PruneAtInit"]


class PruneAtInit(ChangeMasks):
    """Prune the network when a fit starts, or after some epochs, and keep pruned weights at zero.

    The callback works with any LightningModule and any data. Every full checkpoint stores the masks
    under one fixed key. A network that is restored from a checkpoint with masks is never pruned
    again, whatever the options are.

    Masks belong to one network. If the same network is fitted again, it keeps its masks; another
    network is pruned. If pruning fails, the network is left as it was, without masks. Several
    networks of one module need one callback each, with ``network`` naming them.

    Args:
        pruner: Pruner that computes the scores; ``None`` trains the dense network.
        density: Fraction of prunable weights kept, in (0, 1].
        num_kept: Number of weights kept, instead of ``density``.
        effective_density: Fraction of prunable weights that are kept and on a path of kept weights
            from input to output, in (0, 1], instead of ``density``.
        flops: Fraction of the FLOPs of a forward pass that are kept, in (0, 1], instead of
            ``density``.
        parameters: Fraction of all parameters that are kept, in (0, 1], instead of ``density``.
        latency: Fraction of the duration of a forward pass that is kept, in (0, 1], instead of
            ``density``, with ``granularity="unit"``; it is measured when the network is pruned.
        granularity: What is removed together: ``"weight"``, ``"unit"``, ``"kernel"``,
            ``"block:AxB"``, ``"N:M"`` (such as ``"2:4"``, without a ``density``) or
            ``"N:M-padded"``, as in :func:`synflow_pl.prune`.
        group_score: Score of a group of weights: the ``"sum"`` of the scores of its weights, their
            ``"mean"``, or ``"per_cost"``, the sum over the weights, FLOPs or parameters of the
            group, whichever are limited.
        rounds: Number of score-then-prune steps, at least 1; by default the pruner's own number.
            ``"auto"``, for SynFlow and SynFlowL2, takes as many as certainly leave a path.
        margin: Fraction of the total flow, in (0, 1), that a step may prune with ``"auto"``.
        schedule: Name of the function that gives the density after each round; by default the
            pruner's own.
        scope: ``"global"`` to rank the weights of all layers together, or ``"local"`` to rank each
            layer separately.
        mask_bias: Whether the bias of a unit without kept weights is masked too.
        mask_norm: Whether gain and shift of a unit without kept weights are masked too, of
            BatchNorms and GroupNorms that read the output of one prunable layer and nothing else.
        exclude: Shell-style pattern, or list of patterns, of parameter names within the network
            that stay dense.
        include: Pattern, or list of patterns, of names of further parameters to prune, such as
            embeddings.
        train_mode: Whether data-driven pruners score in train mode, in which BatchNorm uses the
            statistics of each batch; running statistics do not change.
        fresh_batches: Whether data-driven pruners score on other images in each round.
        sanity: Name of a sanity check of Frankle et al. 2021, "Pruning neural networks at
            initialization: why are we missing the mark?": invert the scores, shuffle the masks
            within layers, or reinitialise the weights.
        at_epoch: Number of epochs of training before the network is pruned, at least 0; 0 is before
            the first step. A pruner whose rounds are spread over the training (GradualMagnitude)
            begins then, and so do the updates of a pruner that changes masks during the training
            (RigL, SET).
        score_from: Run or checkpoint whose trained weights are scored and whose masks are pruned
            further. The kept weights then start from the values that the network has when the fit
            begins (rewinding, Frankle & Carbin 2019). ``ckpt_path`` may then be a checkpoint
            without masks.
        masks_path: Path of a file of masks to train with. Nothing is pruned then, and the options
            of pruning are not used. With RigL or SET they are the initial masks.
        network: Name of the attribute of the LightningModule that is pruned ("backbone"); by
            default ``network`` if there is such an attribute, else the whole module.
        input_shape: Shape (C, H, W) of an input; by default that of the data module, else of
            ``example_input_array``, else of a training batch.
        on_collapse: ``"error"`` or ``"warn"``, if no path of kept weights connects input and
            output.
        compact: Whether a smaller network is trained, without the units that cannot change the
            output; checkpoints keep the full shapes. The network must be pruned before the first
            step.
        freeze_dead: Whether biases, gains and shifts of units without a path of kept weights from
            the input are held at zero, so that these units can be removed; this changes the
            training.
        loss: Function from (outputs, labels) to the mean loss of a batch of pairs, for a pruner
            that scores on data; by default it scores by the loss of ``training_step()``, on batches
            of any structure.
        loss_fn: Function from (module, batch) to the mean loss of a batch of any structure, instead
            of ``loss``; required for a module with manual optimisation.
        spectra: Whether the diagnosis includes the spectral gap and the Ramanujan bound of each
            layer.

    Attributes:
        masks: Masks of the network, or ``None`` before it is pruned.
        diagnosis: Diagnosis of the pruned network, or ``None`` if this callback has not pruned it.
            An update of the masks replaces it.
        survival: History of the masks over the rounds; ``None`` for a single round, a pruner that
            regrows weights, or a network that is sharded, and after an update of the masks.
        seconds: Duration of the pruning, in seconds.

    Raises:
        ValueError: If an option is impossible, naming its value.
        TypeError: If ``loss`` or ``loss_fn`` cannot be called with two arguments.
        FileNotFoundError: If there is no file at ``masks_path``.
        DeadNetwork: When the network is pruned, if no path of kept weights connects input and
            output and ``on_collapse`` is ``"error"``.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from synflow_pl.pruners import SynFlow
        >>> from synflow_pl.training import PruneAtInit
        >>> callback = PruneAtInit(SynFlow(), density=0.01)
        >>> trainer = Trainer(callbacks=[callback], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        pruner: Pruner | None,
        density: float | None = None,
        num_kept: int | None = None,
        effective_density: float | None = None,
        flops: float | None = None,
        parameters: float | None = None,
        latency: float | None = None,
        granularity: str = "weight",
        group_score: Literal["sum", "mean", "per_cost"] = "sum",
        rounds: int | Literal["auto"] | None = None,
        margin: float = 0.5,
        schedule: Literal["exponential", "linear", "cubic"] | None = None,
        scope: Literal["global", "local"] = "global",
        mask_bias: bool = False,
        mask_norm: bool = False,
        exclude: Sequence[str] | str = (),
        include: Sequence[str] | str = (),
        train_mode: bool = False,
        fresh_batches: bool = False,
        sanity: Literal["invert", "shuffle", "reinitialise"] | None = None,
        at_epoch: int = 0,
        score_from: str | os.PathLike[str] | None = None,
        masks_path: str | os.PathLike[str] | None = None,
        network: str | None = None,
        input_shape: Sequence[int] | None = None,
        on_collapse: Literal["error", "warn"] = "error",
        compact: bool = False,
        freeze_dead: bool = False,
        loss: nn.Module | None = None,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        spectra: bool = False,
    ) -> None:
        super().__init__(
            network,
            compact,
            method=pruner if isinstance(pruner, DropAndGrow) else None,
            at_epoch=at_epoch,
            on_collapse=on_collapse,
            spectra=spectra,
        )
        self._from_file = Masks.load(masks_path) if masks_path is not None else None
        self._options = make_options(
            pruner,
            density=density,
            num_kept=num_kept,
            effective_density=effective_density,
            flops=flops,
            parameters=parameters,
            latency=latency,
            granularity=granularity,
            group_score=group_score,
            rounds=rounds,
            margin=margin,
            schedule=schedule,
            scope=scope,
            mask_bias=mask_bias,
            mask_norm=mask_norm,
            exclude=exclude,
            include=include,
            train_mode=train_mode,
            sanity=sanity,
            at_epoch=at_epoch,
            score_from=score_from,
            masks_path=masks_path,
            from_file=self._from_file,
            on_collapse=on_collapse,
            compact=compact,
            freeze_dead=freeze_dead,
            loss=loss,
            loss_fn=loss_fn,
        )
        self.pruner = pruner if pruner is None or sanity is None else SANITY[sanity](pruner)
        self.score_from = find_checkpoint(score_from) if score_from is not None else None
        self.loss: Callable[[Any, Any], Tensor] | None = loss
        self.loss_fn = loss_fn
        self.input_shape = tuple(input_shape) if input_shape is not None else None
        self.fresh_batches = fresh_batches
        self.freeze_dead = freeze_dead
        self._resumes = False
        self._clear()

    def _clear(self) -> None:
        """Replace the chooser of masks, which stores example inputs and weights for one fit."""
        self._chooser = MaskChooser(
            self.pruner,
            self._options,
            self._from_file,
            loss=self.loss,
            loss_fn=self.loss_fn,
            input_shape=self.input_shape,
            fresh_batches=self.fresh_batches,
            score_from=self.score_from,
            freeze_dead=self.freeze_dead,
        )

    def check_now(self) -> None:
        """Refuse to prune without a fit if these options do not allow it.

        Raises:
            ValueError: If there is no pruner, or the pruning happens during a training.
        """
        check_now(self.pruner if self._from_file is None else None, self.at_epoch)

    def prune(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune now, without a fit.

        Args:
            trainer: Trainer that has set up its strategy.
            pl_module: Module whose network is pruned.

        Raises:
            ValueError: If the network cannot be pruned without a fit, as in :meth:`check_now`.
            DeadNetwork: If no path of kept weights connects input and output, and ``on_collapse``
                is ``"error"``.
        """
        self.check_now()
        self._start(trainer, pl_module)
        self._begin(trainer, pl_module)
        self._hooks.release()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the options against the module and the Trainer, before anything is computed.

        Raises:
            ValueError: If this callback cannot work with them.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or not self._chooser.prunes:
            return
        check_trainer(trainer, self.at_epoch)
        if shards_parameters(trainer):
            self._prune_before_sharding(trainer, pl_module)
        network, _ = find_network(pl_module, self.network)
        if self._from_file is not None:
            self._from_file.parameters(network)
        if self.compact:
            check_compactable(trainer, pl_module, network)
        at_start = self.at_epoch == 0 and self._chooser.end_fraction is None
        run_before_tuners(trainer, self, sparse=at_start)
        if at_start and trainer.is_global_zero:
            self._chooser.copy_unrounded(trainer, network)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune unless there are masks already or it is too early, and apply the masks."""
        check_monitors(trainer, pl_module)
        super().on_fit_start(trainer, pl_module)
        if self.masks is None and self._chooser.prunes and self.at_epoch == 0:
            if shards_parameters(trainer):
                if not self._resumes:
                    self._prune_shards(trainer, pl_module)
            elif trainer.ckpt_path is not None and self.score_from is None:
                raise ValueError(too_late(trainer))
            else:
                self._begin(trainer, pl_module)
        self._chooser.unrounded = {}
        if self.compact and self.masks is not None:
            inputs = self._chooser.example(self._fit(trainer, pl_module))
            self._compact(trainer, pl_module, self.masks, inputs)

    # -- strategies that shard parameters

    def _prune_before_sharding(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune right before ``configure_model()``, unless a checkpoint with masks is resumed."""
        check_sharded_fit(
            trainer,
            compact=self.compact,
            at_epoch=self.at_epoch,
            during=self._pruner_during_training,
        )
        self._resumes = resumed_path(trainer) is not None and self.score_from is None

        def prune() -> None:
            network, _ = find_network(pl_module, self.network)
            # A fit that failed in setup() leaves its call to the next one.
            if pl_module.trainer is not trainer or self._resumes or self._belongs(network):
                return
            if not is_whole(network):
                return
            self._ranks.broadcast(network.buffers())
            with on_root_device(trainer, pl_module):
                self._begin(trainer, pl_module)
                self._hooks.release()
            self.survival = None  # it has the size of the whole network
            self._clear()
            self._pruned_whole = True

        call_after_setup(pl_module, prune)

    def _restore_shards(
        self, trainer: Trainer, pl_module: LightningModule, state: NetworkState
    ) -> None:
        """Apply the masks of a checkpoint that is restored after the fit has started.

        Raises:
            ValueError: If the checkpoint has no masks and would be pruned in mid-training.
        """
        if state.masks is None and self._chooser.prunes and self.score_from is None:
            raise ValueError(too_late(trainer))
        super()._restore_shards(trainer, pl_module, state)
