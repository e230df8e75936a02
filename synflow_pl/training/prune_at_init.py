"""Prune a network in a Trainer, keep pruned weights at zero, and store masks in checkpoints."""

from __future__ import annotations

import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from synflow_pl.compaction import freeze
from synflow_pl.diagnosis import DeadNetwork, Diagnosis, MaskHistory, diagnose
from synflow_pl.flow import Connectivity, example_of
from synflow_pl.masks import Hold, Masks, prunable
from synflow_pl.pruners import Pruner
from synflow_pl.pruners.recording import RecordingPruner
from synflow_pl.pruners.sanity import SANITY
from synflow_pl.pruning import PruningOptions, prune
from synflow_pl.pruning_checks import rounds_advice
from synflow_pl.schedules import SCHEDULES, as_density
from synflow_pl.training.averaged_models import averaged_models, refuse_mid_epoch
from synflow_pl.training.checkpoints import (
    KEY,
    attribute_of,
    find_checkpoint,
    load_masks,
    load_weights,
    states,
)
from synflow_pl.training.collective_metrics import compute_on_all_ranks
from synflow_pl.training.compacted import Compacted, check_compactable, rebuild
from synflow_pl.training.distributed import Ranks
from synflow_pl.training.gradual_pruning import End, Gradual, check_time, last_step
from synflow_pl.training.introspection import (
    FreshBatches,
    find_batches,
    find_example,
    find_loss,
    find_network,
)
from synflow_pl.training.losses import BROADCAST, Loss, takes_two
from synflow_pl.training.monitors import check_monitors
from synflow_pl.training.precision import scorable, unrounded
from synflow_pl.training.tuner_order import run_before_tuners
from synflow_pl.training.visualization import (
    show_density,
    show_diagnosis,
    show_masks,
    show_rounds,
    wants_pictures,
)
from synflow_pl.training.zeros import Zeros, tensors_outside_networks

__all__ = ["PruneAtInit"]


class PruneAtInit(Callback):
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
        rounds: Number of score-then-prune steps, at least 1; by default the pruner's own number.
            ``"auto"``, for SynFlow and SynFlowL2, takes as many as certainly leave a path.
        margin: Fraction of the total flow, in (0, 1), that a step may remove with ``"auto"``.
        schedule: Name of the function that gives the density after each round; by default the
            pruner's own.
        scope: ``"global"`` to rank the weights of all layers together, or ``"local"`` to rank each
            layer separately.
        mask_bias: Whether biases are masked too; each is kept as long as its unit.
        mask_norm: Whether gains and shifts of normalisations that follow a prunable layer are
            masked too; each is kept as long as its unit.
        exclude: Shell-style pattern, or list of patterns, of parameter names within the network
            that stay dense.
        train_mode: Whether data-driven pruners score in train mode, in which BatchNorm uses the
            statistics of each batch; running statistics do not change.
        fresh_batches: Whether data-driven pruners score on other images in each round.
        sanity: Name of a sanity check of Frankle et al. 2021, "Pruning neural networks at
            initialization: why are we missing the mark?": invert the scores, shuffle the masks
            within layers, or reinitialise the weights.
        at_epoch: Number of epochs of training before the network is pruned, at least 0; 0 is before
            the first step. A pruner whose rounds are spread over the training (GradualMagnitude)
            begins then.
        score_from: Run or checkpoint whose trained weights are scored and whose masks are pruned
            further, while the kept weights have the values with which this fit starts: rewinding
            (Frankle & Carbin 2019). ``ckpt_path`` may then be a checkpoint without masks.
        masks_path: Path of a file of masks to train with. Nothing is pruned then, and the options
            of pruning are not used.
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
        loss: Function of (outputs, labels) that returns the mean loss, for a pruner that scores on
            data; by default the module's attribute ``loss``, ``criterion``, ``loss_fn`` or
            ``loss_function``, if that is a module or function of two arguments.

    Attributes:
        masks: Masks of the network, or ``None`` before it is pruned.
        diagnosis: Diagnosis of the pruned network, or ``None`` if this callback has not pruned it.
        survival: History of the masks over the rounds; ``None`` for a single round or a pruner that
            regrows weights.
        seconds: Duration of the pruning, in seconds.

    Raises:
        ValueError: If an option is impossible, naming its value.
        TypeError: If ``loss`` cannot be called with two arguments.
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
        rounds: int | Literal["auto"] | None = None,
        margin: float = 0.99,
        schedule: Literal["exponential", "linear", "cubic"] | None = None,
        scope: Literal["global", "local"] = "global",
        mask_bias: bool = False,
        mask_norm: bool = False,
        exclude: Sequence[str] | str = (),
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
    ) -> None:
        self._from_file = Masks.load(masks_path) if masks_path is not None else None
        self._options: PruningOptions | None = None
        if self._from_file is None and pruner is not None:
            self._options = PruningOptions(
                density=density,
                num_kept=num_kept,
                effective_density=effective_density,
                rounds=rounds,
                margin=margin,
                schedule=schedule,
                scope=scope,
                mask_bias=mask_bias,
                mask_norm=mask_norm,
                exclude=(exclude,) if isinstance(exclude, str) else tuple(exclude),
                train_mode=train_mode,
                on_collapse="ignore",  # the diagnosis that follows reports it
            )
            self._options.check_pruner(pruner)
        elif self._from_file is None and (
            density not in (None, 1) or num_kept is not None or rounds is not None
        ):
            raise ValueError(
                f"density={density}, num_kept={num_kept}, rounds={rounds}, but no pruner; name one,"
                " or leave them out for a dense network"
            )
        if on_collapse not in ("error", "warn"):
            raise ValueError(f"on_collapse: {on_collapse!r} is not one of error, warn")
        if sanity is not None and (sanity not in SANITY or pruner is None):
            raise ValueError(
                f"sanity: {sanity!r} must be one of {', '.join(SANITY)}, and needs a pruner"
            )
        if loss is not None and (
            isinstance(loss, type) or not callable(loss) or not takes_two(loss)
        ):
            raise TypeError(
                f"loss: {loss!r} must be a module or function of two arguments, (outputs, labels)"
                " to the mean loss"
            )
        check_time(pruner, at_epoch, score_from, masks_path, sanity, effective_density)
        if compact and (
            at_epoch
            or (pruner is not None and masks_path is None and pruner.end_fraction is not None)
        ):
            raise ValueError(
                "compact: true needs masks that are final before the first step; leave out at_epoch"
                " and gradual pruning"
            )
        self.compact = compact
        self.freeze_dead = freeze_dead
        self._compacted: Compacted | None = None
        self.pruner = (
            SANITY[sanity](pruner) if sanity is not None and pruner is not None else pruner
        )
        self.at_epoch = at_epoch
        self.score_from = find_checkpoint(score_from) if score_from is not None else None
        self.network = network
        self.loss: Loss | None = loss
        self.input_shape = tuple(input_shape) if input_shape is not None else None
        self.on_collapse = on_collapse
        self.fresh_batches = fresh_batches
        self.masks: Masks | None = None
        self.diagnosis: Diagnosis | None = None
        self.survival: MaskHistory | None = None
        self.seconds = 0.0
        self._recording: RecordingPruner | None = None
        self._restored = False
        self._gradual: Gradual | None = None
        self._end = End(None, None)
        self._inputs: tuple[Tensor, ...] = ()
        self._ranks: Ranks
        self._unrounded: dict[str, Tensor] = {}
        self._holds: dict[int, Hold] = {}
        self._zeros: Zeros | None = None
        self._pruned: weakref.ref[nn.Module] | None = None
        self._label = ""

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with the network in place of the weak reference, which has no pickle."""
        return {**self.__dict__, "_pruned": self._pruned() if self._pruned is not None else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state, with a weak reference to the network."""
        network = state["_pruned"]
        self.__dict__.update(state, _pruned=weakref.ref(network) if network is not None else None)

    @property
    def _prunes(self) -> bool:
        return self.pruner is not None or self._from_file is not None

    @property
    def _end_fraction(self) -> float | None:
        return (
            self.pruner.end_fraction
            if self.pruner is not None and self._from_file is None
            else None
        )

    @property
    def _rounds(self) -> int:
        assert self.pruner is not None
        rounds = self._options.rounds if self._options is not None else None
        return rounds if isinstance(rounds, int) else self.pruner.rounds

    # -- pruning

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
        self._release()

    # -- state of one network and one fit

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the state that belongs to an earlier fit."""
        self._ranks = Ranks(trainer)
        self._release()
        self._inputs, self._unrounded, self._recording, self._restored = (), {}, None, False
        self._label = (
            self.network or type(pl_module).__name__ if len(_callbacks(trainer, self)) > 1 else ""
        )

    def _reset(self) -> None:
        """Reset the state that belongs to an earlier network."""
        self.masks, self.diagnosis, self.survival, self.seconds = None, None, None, 0.0
        self._gradual, self._recording, self._pruned, self._restored = None, None, None, False

    def _belongs(self, network: nn.Module) -> bool:
        """Return whether the masks and the diagnosis are this network's."""
        return self._pruned is not None and self._pruned() is network

    @property
    def _heading(self) -> str:
        """Beginning of messages, with the network's name if several are pruned."""
        return f"Pruning {self._label}" if self._label else "Pruning"

    def check_now(self) -> None:
        """Refuse to prune without a fit if these options do not allow it.

        Raises:
            ValueError: If there is no pruner, or the pruning happens during a training.
        """
        if self.pruner is None or self._from_file is not None:
            raise ValueError(
                "there is no pruner to prune by; name one (pruning.pruner), and leave out"
                " pruning.masks_path"
            )
        if self._end_fraction is not None or self.at_epoch:
            during = (
                f"{type(self.pruner).__name__} prunes"
                if self._end_fraction is not None
                else f"at_epoch: {self.at_epoch} is"
            )
            raise ValueError(
                f"{during} during a training, and nothing is trained here; choose another pruner or"
                " time, or use fit"
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the options against the module and the Trainer, before anything is computed.

        Raises:
            ValueError: If this callback cannot work with them.
        """
        if stage != "fit":
            return
        # Prevents a deadlock of a rank that reads a metric with a rank that compares masks.
        compute_on_all_ranks(trainer)
        self._start(trainer, pl_module)
        _refuse_overlap(_callbacks(trainer, self), pl_module)
        if not self._prunes:
            return
        _refuse_shards(trainer)
        if (
            self.at_epoch
            and trainer.max_epochs not in (None, -1)
            and self.at_epoch >= trainer.max_epochs
        ):
            raise ValueError(
                f"at_epoch: {self.at_epoch} is not before the end of training at"
                f" max_epochs={trainer.max_epochs}; prune earlier or train longer"
            )
        network, _ = find_network(pl_module, self.network)
        if self._from_file is not None:
            self._from_file.parameters(network)
        if self.compact:
            check_compactable(trainer, pl_module, network)
        at_start = self.at_epoch == 0 and self._end_fraction is None
        run_before_tuners(trainer, self, sparse=at_start)
        if (
            at_start
            and self.score_from is None
            and self._from_file is None
            and trainer.is_global_zero
        ):
            self._unrounded = unrounded(trainer, network)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune unless there are masks already or it is too early, and apply the masks."""
        check_monitors(trainer, pl_module)
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
            rank_zero_info(
                f"{self._heading}: not again; {reason} (density {self.masks.density:.6g})."
            )
            self._keep(trainer, pl_module, self.masks)
        elif self._prunes and self.at_epoch == 0:
            if trainer.ckpt_path is not None and self.score_from is None:
                raise ValueError(_too_late(trainer))
            self._begin(trainer, pl_module)
        self._unrounded = {}
        if self.compact and self.masks is not None:
            self._compact(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the epoch at which a resumed training starts, and compute the last step of pruning.

        Raises:
            ValueError: If the training resumes without masks after the epoch of the pruning.
        """
        if self._prunes and self.masks is None:
            epoch, within = trainer.current_epoch, trainer.fit_loop.restarted_mid_epoch
            if epoch > self.at_epoch or (epoch == self.at_epoch and within):
                raise ValueError(_too_late(trainer))
        if self._end_fraction is not None:
            self._end = last_step(trainer, self._end_fraction, self.at_epoch)
            if self._gradual is not None:
                self._gradual.align(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune if ``at_epoch`` is this epoch."""
        if self._prunes and self.masks is None and trainer.current_epoch == self.at_epoch:
            self._begin(trainer, pl_module)

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune now, or begin a gradual pruning with masks that keep every weight."""
        network, _ = find_network(pl_module, self.network)
        dense = [parameter.detach().clone() for parameter in network.parameters()]
        try:
            self._reset()
            self._pruned = weakref.ref(network)
            self._mask(trainer, pl_module, network)
        except BaseException:
            # A second attempt must start from the same weights, without masks that were never
            # diagnosed.
            with torch.no_grad():
                for parameter, before in zip(network.parameters(), dense, strict=True):
                    parameter.copy_(before)
            self._release()
            self.masks, self._gradual, self._pruned = None, None, None
            raise

    def _mask(self, trainer: Trainer, pl_module: LightningModule, network: nn.Module) -> None:
        """Choose the masks, apply them, and report the diagnosis."""
        if self._end_fraction is not None:
            self._find_loss(pl_module, network)
            self._gradual = Gradual.starting(trainer)
            assert self._options is not None
            weights = prunable(network, self._options.exclude)
            return self._keep(
                trainer,
                pl_module,
                Masks({name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}),
            )
        started = time.perf_counter()
        how = "masks from a file" if self._from_file is not None else type(self.pruner).__name__

        def choose() -> dict[str, object]:
            masks = self._choose(trainer, pl_module, network)
            if self.freeze_dead:
                masks = freeze(
                    network, masks, example_of(network, None, self._example(trainer, pl_module))
                )
            return masks.state_dict()

        masks = self._ranks.run_on_rank_zero(choose, no_timeout=True)
        self.seconds = time.perf_counter() - started
        self._ranks.broadcast(network.parameters())  # a sanity check may have reinitialised them
        self._keep(trainer, pl_module, Masks.from_state_dict(masks))
        self._report(trainer, pl_module, f"{how} kept", f" in {self.seconds:.1f} s")

    def _choose(self, trainer: Trainer, pl_module: LightningModule, network: nn.Module) -> Masks:
        """Return the masks that the pruner chooses, or those of the file."""
        if self._from_file is not None:
            return self._from_file
        assert self.pruner is not None
        hidden = trainer.progress_bar_callback is None
        scored = scorable(network, self._unrounded)
        rewound, previous = {}, None
        automatic = self._options is not None and self._options.rounds == "auto"
        self.survival = (
            MaskHistory() if (automatic or self._rounds > 1) and not self.pruner.regrows else None
        )
        if self.score_from is not None:
            rewound = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            attribute = attribute_of(find_network(pl_module, self.network)[1])
            load_weights(scored, self.score_from, attribute=attribute)
            previous = load_masks(self.score_from, attribute)
        with tqdm(
            total=None if automatic else self._rounds,
            desc=f"{self._heading}, {type(self.pruner).__name__}",
            unit="round",
            leave=False,
            disable=hidden,
        ) as bar:

            def on_round(index: int, density: float, masks: Mapping[str, Tensor]) -> None:
                bar.update()
                show_density(trainer.loggers, index, density, self._label)
                if self.survival is not None:
                    self.survival(index, density, masks)

            assert self._options is not None
            masks = self._prune(
                trainer, pl_module, scored, self._options, masks=previous, on_round=on_round
            )
        if self.score_from is not None or scored is not network:
            network.load_state_dict(rewound or scored.state_dict())
        return masks

    def _prune(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        network: nn.Module,
        options: PruningOptions,
        **arguments: Any,
    ) -> Masks:
        assert self.pruner is not None
        pruner = (
            RecordingPruner(self.pruner, options.rounds)
            if wants_pictures(trainer.loggers)
            else self.pruner
        )
        if self.pruner.needs_batches:
            arguments |= {
                "loss": self._find_loss(pl_module, network),
                "batches": self._batches(trainer),
            }
        with warnings.catch_warnings():
            if self.loss is None:
                # The module's training step may bring outputs and labels to one shape; its loss
                # alone does not.
                warnings.filterwarnings("error", BROADCAST, UserWarning)
            try:
                masks = prune(
                    network,
                    pruner,
                    example_input=self._example(trainer, pl_module),
                    **vars(options),
                    **arguments,
                )
            except UserWarning as warning:
                raise ValueError(
                    f"the loss of {type(pl_module).__name__} compares outputs and labels of"
                    " different shapes; give PruneAtInit loss=, a function of (outputs, labels)"
                    " that brings them to one shape as the training step does"
                ) from warning
        if isinstance(pruner, RecordingPruner):
            self._recording = pruner.after(self._recording)
        return masks

    def _batches(
        self, trainer: Trainer
    ) -> Sequence[tuple[Tensor, Tensor]] | Callable[[int], Sequence[tuple[Tensor, Tensor]]]:
        assert self.pruner is not None
        if not self.fresh_batches:
            return find_batches(trainer, self.pruner)
        fresh = FreshBatches(trainer, self.pruner)
        # A gradual pruning calls prune() once for each round.
        first = self._gradual.done if self._gradual is not None else 0
        return lambda index: fresh(first + index)

    def _find_loss(self, pl_module: LightningModule, network: nn.Module) -> Loss | None:
        """Return the loss of a pruner that scores on data, else ``None``.

        Raises:
            ValueError: If the module has no such loss, or several.
        """
        if self.pruner is None or not self.pruner.needs_batches or self._from_file is not None:
            return None
        return self.loss or find_loss(pl_module, network)

    def _example(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Tensor, ...]:
        self._inputs = self._inputs or find_example(trainer, pl_module, self.input_shape)
        return self._inputs

    def _keep(self, trainer: Trainer, pl_module: LightningModule, masks: Masks) -> None:
        """Apply masks to the network and its averages, now and after every optimiser step."""
        self.masks = masks
        network, _ = find_network(pl_module, self.network)
        self.masks.apply(network)
        for average in averaged_models(trainer):
            self.masks.apply(find_network(average, self.network)[0])
        self._hold(trainer, pl_module, self.masks)
        self._ranks.assert_equal(masks=self.masks.items(), weights=network.named_parameters())
        folder = trainer.log_dir  # a collective call, since Lightning broadcasts the value

        def save() -> None:
            # Ranks other than 0 may have no logger, if torchrun or SLURM started them.
            if folder is not None and isinstance(trainer.logger, (CSVLogger, TensorBoardLogger)):
                masks.save(
                    Path(folder)
                    / (f"masks_{self._label}.safetensors" if self._label else "masks.safetensors")
                )

        self._ranks.run_on_rank_zero(save)

    def _hold(self, trainer: Trainer, pl_module: LightningModule, masks: Masks) -> None:
        """Set pruned weights to zero after each optimiser step and after other writes to them."""
        network, prefix = find_network(pl_module, self.network)
        for hold in self._holds.values():
            hold.remove()
        self._holds.clear()
        for optimizer in trainer.optimizers:
            # An optimiser that does not call Optimizer.__init__ has no hooks; pruned weights that
            # it writes are set to zero after the batch.
            if hasattr(optimizer, "_optimizer_step_post_hooks"):
                self._holds[id(optimizer)] = masks.hold(network, optimizer)
        if self._zeros is None:
            others = _callbacks(trainer, self)
            owned = (find_network(pl_module, other.network)[0] for other in others)
            skip = {
                *map(id, others),
                *(
                    id(module)
                    for owner in owned
                    if owner is not pl_module
                    for module in owner.modules()
                ),
            }

            def averages() -> Iterator[nn.Module]:
                return (
                    find_network(average, self.network)[0] for average in averaged_models(trainer)
                )

            self._zeros = Zeros(
                prefix, lambda: tensors_outside_networks(trainer, pl_module, skip), averages
            )
            self._zeros.written = len(self._holds) < len(trainer.optimizers)
        self._zeros.hold(network, masks)

    def _compact(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compact the network, and recreate the optimisers and wrappers of its parameters."""
        assert self.masks is not None
        network, _ = find_network(pl_module, self.network)
        self._release()
        self._compacted = Compacted(
            network, self.masks, example_of(network, None, self._example(trainer, pl_module))
        )
        rebuild(trainer, pl_module)
        self._hold(trainer, pl_module, self._compacted.masks)
        rank_zero_info(self._compacted.summary)

    def _report(self, trainer: Trainer, pl_module: LightningModule, how: str, took: str) -> None:
        """Diagnose the pruned network, and log and print the diagnosis.

        Raises:
            DeadNetwork: If no path of kept weights connects input and output, and ``on_collapse``
                is ``"error"``.
        """
        assert self.masks is not None
        masks, (network, _) = self.masks, find_network(pl_module, self.network)

        def diagnose_network() -> Diagnosis:
            inputs = self._example(trainer, pl_module)
            diagnosis = diagnose(network, masks, example_input=inputs)
            if diagnosis.alive or self.survival is None:
                return diagnosis
            return replace(diagnosis, died=self.survival.died(Connectivity(network, inputs)))

        self.diagnosis = diagnosis = self._ranks.run_on_rank_zero(diagnose_network)
        rank_zero_info(
            f"{self._heading}: {how} {diagnosis.kept:,} of {diagnosis.total:,} weights"
            f" (density {diagnosis.density:.6g}, effective"
            f" {diagnosis.effective_density:.6g}){took}."
        )
        rank_zero_info(diagnosis.table())
        for note in (
            self.pruner.notes if self.pruner is not None and self._from_file is None else ()
        ):
            rank_zero_info(f"{self._heading}: {note}.")
        if trainer.is_global_zero:
            show_diagnosis(trainer.loggers, diagnosis, self._label)
            show_masks(trainer.loggers, network, self.masks, self._label)
            if self._recording is not None:
                show_rounds(
                    trainer.loggers, network, self._inputs, self.masks, self._recording, self._label
                )
        self._recording = None
        if message := diagnosis.collapse:
            if not diagnosis.alive and self.pruner is not None and self._options is not None:
                message += rounds_advice(self.pruner, self._options.rounds)
            if not diagnosis.alive and self.on_collapse == "error":
                raise DeadNetwork(f"{message}, or on_collapse warn to train it anyway")
            rank_zero_warn(f"{self._heading}: {message}")

    # -- training

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set pruned weights to zero if something wrote to them since the last optimiser step."""
        if self._zeros is not None:
            self._zeros.check_batch(batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prune further if a round of a gradual pruning is due."""
        if self._zeros is not None and self._zeros.written:
            self._zeros.check()
        if (
            self._gradual is None
            or self._end_fraction is None
            or self.pruner is None
            or self.masks is None
        ):
            return
        due = self._gradual.due(trainer, self._end, self._rounds)
        if due <= self._gradual.done:
            return
        network = find_network(pl_module, self.network)[0]
        assert self._options is not None
        density, num_kept = self._options.density, self._options.num_kept
        target = (
            as_density(density)
            if density is not None
            else Fraction(num_kept or 0, self.masks.total)
        )
        schedule = SCHEDULES[self._options.schedule or self.pruner.schedule]
        then = schedule(target, Fraction(due, self._rounds)) if due < self._rounds else target
        options = replace(self._options, density=then, num_kept=None, rounds=1)
        before = self.masks
        masks = self._ranks.run_on_rank_zero(
            lambda: self._prune(
                trainer, pl_module, scorable(network, {}), options, masks=before
            ).state_dict()
        )
        self._keep(trainer, pl_module, Masks.from_state_dict(masks))
        self._gradual.done = due
        show_density(trainer.loggers, due, self.masks.density, self._label)
        if due == self._rounds:
            try:
                self._report(
                    trainer,
                    pl_module,
                    f"{type(self.pruner).__name__} has kept",
                    f" by step {trainer.global_step}",
                )
            except DeadNetwork:
                # Another fit of the network must not train it disconnected.
                self._release()
                self.masks, self._gradual, self._pruned = None, None, None
                raise

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Set pruned weights to zero if a hook wrote to them before the validation."""
        if self._zeros is not None and batch_idx == 0 and trainer.state.fn == TrainerFn.FITTING:
            self._zeros.check()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if training ended before the pruning was completed."""
        if self._zeros is not None:
            self._zeros.check()
        if self._prunes and self.masks is None:
            rank_zero_warn(
                f"{self._heading}: training ended before epoch {self.at_epoch}, so nothing was"
                " pruned"
            )
        elif (
            self._gradual is not None
            and self._end_fraction is not None
            and self.masks is not None
            and self._gradual.done < self._rounds
        ):
            rank_zero_warn(
                f"{self._heading}: training ended after round {self._gradual.done} of"
                f" {self._rounds}, at density {self.masks.density:.6g}"
            )

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Set the gradients of pruned weights to zero, so that norms count kept weights only."""
        if hold := self._holds.get(id(optimizer)):
            hold.mask_gradients()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the optimisers, and restore the full shapes of a compacted network."""
        self._finish()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Clean up as :meth:`teardown` does, which Lightning does not call after an exception."""
        self._finish()

    def _finish(self) -> None:
        if self._zeros is not None:
            self._zeros.check()
        self._release()
        self._restore()
        self._inputs, self._unrounded = (), {}

    def _restore(self) -> None:
        if self._compacted is not None:
            self._compacted.restore()
            self._compacted = None

    def _release(self) -> None:
        for hold in self._holds.values():
            hold.remove()
        self._holds.clear()
        if self._zeros is not None:
            self._zeros.release()
        self._zeros = None

    # -- checkpoints

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the masks in the checkpoint, under a key that does not depend on the class."""
        _, prefix = find_network(pl_module, self.network)
        state: dict[str, Any] = {"network": prefix, "compact": self.compact}
        if self.masks is not None:
            state["masks"] = self.masks.state_dict()
        if self._gradual is not None:
            state["gradual"] = asdict(self._gradual)
        if len(_callbacks(trainer, self)) == 1:
            checkpoint[KEY] = state
        else:
            checkpoint.setdefault(KEY, {"networks": {}})["networks"][prefix] = state

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the masks and the state of a gradual pruning from a checkpoint that has them.

        Raises:
            ValueError: If training cannot be resumed from it with these callbacks.
        """
        network, prefix = find_network(pl_module, self.network)
        fitting = trainer.state.fn == TrainerFn.FITTING
        stored = {attribute_of(name): state for name, state in states(checkpoint).items()}
        if fitting:
            present = [
                attribute_of(find_network(pl_module, other.network)[1])
                for other in _callbacks(trainer, self)
            ]
            _refuse_unclaimed(trainer, present, stored)
            refuse_mid_epoch(trainer, checkpoint)
        state = stored.get(attribute_of(prefix), {})
        if (
            fitting
            and state.get("masks") is not None
            and state.get("compact", False) != self.compact
        ):
            raise ValueError(
                f"compact: the checkpoint was trained with compact {str(not self.compact).lower()},"
                " and its optimiser's state has that size; resume with the same value"
            )
        if state.get("masks") is not None:
            if fitting:
                _refuse_shards(trainer)
            masks = Masks.from_state_dict(state["masks"])
            if self.masks is None or not self._belongs(network) or not _equal(self.masks, masks):
                self._reset()
                self.masks = masks
            self._pruned, self._restored = weakref.ref(network), fitting
            self._gradual = (
                Gradual(**state["gradual"]) if state.get("gradual") is not None else None
            )
        elif fitting or (
            self.masks is not None and self._belongs(network) and not _holds(network, self.masks)
        ):
            self._reset()


def _callbacks(trainer: Trainer, own: PruneAtInit) -> list[PruneAtInit]:
    """Return the callbacks of this class in a Trainer, or only ``own`` if it is not among them."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # the trainer's connectors set it
    ours = [callback for callback in callbacks if isinstance(callback, PruneAtInit)]
    return ours if own in ours else [own]


def _refuse_overlap(callbacks: Sequence[PruneAtInit], pl_module: LightningModule) -> None:
    """Refuse two callbacks that would prune the same weights.

    Raises:
        ValueError: If there are such callbacks, naming their networks.
    """
    seen: dict[int, str] = {}
    for callback in callbacks:
        network, prefix = find_network(pl_module, callback.network)
        name = attribute_of(prefix) or type(pl_module).__name__
        for parameter in network.parameters():
            if (other := seen.get(id(parameter))) is not None:
                raise ValueError(
                    f"two PruneAtInit prune the same weights, those of {other!r} and of {name!r};"
                    " leave one out, or give each a network of its own (network=)"
                )
        seen.update({id(parameter): name for parameter in network.parameters()})


def _refuse_unclaimed(
    trainer: Trainer, present: Sequence[str], stored: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse a checkpoint with masks of a network that no callback prunes.

    That network would be trained dense.

    Raises:
        ValueError: If there is such a network, naming it.
    """
    for name, state in stored.items():
        if state.get("masks") is not None and name not in present:
            names = ", ".join(repr(other) for other in present)
            raise ValueError(
                f"the checkpoint {str(trainer.ckpt_path)!r} holds the masks of {name!r}, which no"
                f" PruneAtInit of this Trainer prunes (they prune {names}); add one with"
                f" network={name!r}, or start anew without ckpt_path"
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


def _refuse_shards(trainer: Trainer) -> None:
    """Refuse a strategy that shards parameters or the state of the optimiser.

    Raises:
        ValueError: If the strategy does so.
    """
    # Lightning restores a checkpoint after the strategy's setup for exactly these strategies.
    if trainer.strategy.restore_checkpoint_after_setup:
        raise ValueError(
            f"{type(trainer.strategy).__name__} shards parameters or the optimiser's state, and a"
            " shard cannot be pruned; use ddp, or drop the pruner"
        )


def _too_late(trainer: Trainer) -> str:
    return (
        f"{str(trainer.ckpt_path)!r} was trained without masks and would be pruned in mid-training;"
        " resume dense with the overlay pruners/dense, prune at an epoch that lies ahead"
        " (at_epoch), or start anew without ckpt_path"
    )
