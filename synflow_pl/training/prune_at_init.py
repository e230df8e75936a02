"""PruneAtInit: the one callback. Prunes at the start of a fit or later, holds the zeros while it trains, carries the masks in
checkpoints.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from synflow_pl.diagnosis import DeadNetwork, Diagnosis, diagnose
from synflow_pl.masks import Hold, Masks, prunable
from synflow_pl.pruners import Pruner
from synflow_pl.pruners.sanity import SANITY
from synflow_pl.pruning import check_options, prune
from synflow_pl.schedules import SCHEDULES, as_density
from synflow_pl.training.checkpoints import KEY, find_checkpoint, load_masks, load_weights
from synflow_pl.training.finding import find_batches, find_example, find_loss, find_network
from synflow_pl.training.gradual import Gradual, check_time, last_step
from synflow_pl.training.panels import show_density, show_diagnosis

__all__ = ["PruneAtInit"]


class PruneAtInit(Callback):
    """Prunes the network at ``on_fit_start``, or after some epochs, and keeps removed weights at zero from then on.

    Works around any LightningModule and any data. The masks travel in every full checkpoint under one fixed key; a checkpoint that
    has masks is never pruned again, whatever the options say.

    Args:
        pruner: gives the scores; ``None`` trains the whole network.
        density: fraction of prunable weights kept, in (0, 1].
        kept: instead of ``density``, the number of weights kept.
        effective_density: instead of ``density``, the fraction of prunable weights that are kept and on a living path, in (0, 1].
        rounds: score-then-cut steps, at least 1; ``None`` is the pruner's own number.
        schedule: density after each round; ``None`` is the pruner's own.
        scope: all layers in one ranking, or each layer alone.
        bias: mask biases too, each living as long as its unit.
        norm: the same for gains and shifts of normalisations that read a prunable layer.
        exclude: shell-style patterns of parameter names, within the network, that stay dense; one or a list.
        train_mode: data-driven pruners score in train mode, BatchNorm on each batch's own statistics; running ones do not move.
        sanity: a sanity check of Frankle et al. 2021: invert the scores, shuffle the masks within layers, or reinitialise the weights.
        at_epoch: prune after so many epochs of training, at least 0; 0 is before the first step. A pruner whose rounds are spread over
            the training (GradualMagnitude) begins then.
        trained: a run or checkpoint whose trained weights are scored and whose masks are gone on from, while survivors keep the
            weights that this fit starts from: rewinding (Frankle & Carbin 2019). Then ``ckpt_path`` may be a checkpoint without masks.
        masks: path of a masks file to train with; nothing is pruned then, and the options of pruning are not used.
        network: attribute of the LightningModule that is pruned ("backbone"); by default its ``network``, else all of it.
        input_shape: (C, H, W); by default from the data module, else ``example_input_array``, else from one training batch.
        on_collapse: what to do if no input-output path is left.

    Raises:
        ValueError: for an impossible option, naming its value.
        FileNotFoundError: if there is no file at ``masks``.
        DeadNetwork: when the fit starts, if no input-output path is left.
    """

    def __init__(
        self,
        pruner: Pruner | None,
        density: float | None = None,
        kept: int | None = None,
        effective_density: float | None = None,
        rounds: int | None = None,
        schedule: Literal["exponential", "linear", "cubic"] | None = None,
        scope: Literal["global", "local"] = "global",
        bias: bool = False,
        norm: bool = False,
        exclude: Sequence[str] | str = (),
        train_mode: bool = False,
        sanity: Literal["invert", "shuffle", "reinitialise"] | None = None,
        at_epoch: int = 0,
        trained: str | os.PathLike[str] | None = None,
        masks: str | os.PathLike[str] | None = None,
        network: str | None = None,
        input_shape: Sequence[int] | None = None,
        on_collapse: Literal["error", "warn"] = "error",
    ) -> None:
        self._from_file = Masks.load(masks) if masks is not None else None
        if self._from_file is None and pruner is not None:
            check_options(
                density=density, kept=kept, effective_density=effective_density, rounds=rounds, schedule=schedule, scope=scope
            )
        elif self._from_file is None and (density not in (None, 1) or kept is not None or rounds is not None):
            raise ValueError(
                f"density={density}, kept={kept}, rounds={rounds}, but no pruner; name one, or leave them out for a dense network"
            )
        if on_collapse not in ("error", "warn"):
            raise ValueError(f"on_collapse: {on_collapse!r} is not one of error, warn")
        if sanity is not None and (sanity not in SANITY or pruner is None):
            raise ValueError(f"sanity: {sanity!r} must be one of {', '.join(SANITY)}, and needs a pruner")
        check_time(pruner, at_epoch, trained, masks, sanity, effective_density)
        self.pruner = SANITY[sanity](pruner) if sanity is not None and pruner is not None else pruner
        self.at_epoch = at_epoch
        self.trained = find_checkpoint(trained) if trained is not None else None
        self.network = network
        self.input_shape = tuple(input_shape) if input_shape is not None else None
        self.on_collapse = on_collapse
        self.masks: Masks | None = None
        self.diagnosis: Diagnosis | None = None
        self._options: dict[str, Any] = {
            "density": density, "kept": kept, "effective_density": effective_density, "rounds": rounds, "schedule": schedule,
            "scope": scope, "bias": bias, "norm": norm, "train_mode": train_mode,
            "exclude": (exclude,) if isinstance(exclude, str) else tuple(exclude),
        }  # fmt: skip
        self._restored = False
        self._gradual: Gradual | None = None
        self._last_step = 0
        self._inputs: tuple[Tensor, ...] = ()
        self._holds: dict[int, Hold] = {}

    @property
    def _prunes(self) -> bool:
        return self.pruner is not None or self._from_file is not None

    @property
    def _over(self) -> float | None:
        return self.pruner.over if self.pruner is not None and self._from_file is None else None

    @property
    def _rounds(self) -> int:
        assert self.pruner is not None
        rounds: int | None = self._options["rounds"]
        return self.pruner.rounds if rounds is None else rounds

    # -- pruning

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work before anything is computed."""
        if stage != "fit" or not self._prunes:
            return
        if trainer.strategy.restore_checkpoint_after_setup:
            raise ValueError(
                f"{type(trainer.strategy).__name__} shards parameters, and a shard cannot be pruned; use ddp, or drop the pruner"
            )
        if self.at_epoch and trainer.max_epochs not in (None, -1) and self.at_epoch >= trainer.max_epochs:
            raise ValueError(
                f"at_epoch: {self.at_epoch} is not before the end of training at max_epochs={trainer.max_epochs};"
                " prune earlier or train longer"
            )
        network, _ = find_network(pl_module, self.network)
        if self._from_file is not None:
            self._from_file.parameters(network)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune, unless there are masks already or it is too early; then hold the masks."""
        if self.masks is not None:
            if self._restored:
                rank_zero_info(f"Pruning: not again; the checkpoint's masks are kept (density {self.masks.density:.6g}).")
            self._keep(trainer, pl_module, self.masks)
        elif self._prunes and self.at_epoch == 0:
            if trainer.ckpt_path is not None and self.trained is None:
                raise ValueError(_untimely(trainer))
            self._begin(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to prune when the time for it is over, now that it is known where training goes on."""
        if self._prunes and self.masks is None:
            epoch, within = trainer.current_epoch, trainer.fit_loop.restarted_mid_epoch
            if epoch > self.at_epoch or (epoch == self.at_epoch and within):
                raise ValueError(_untimely(trainer))
        if self._over is not None:
            self._last_step = last_step(trainer, self._over, self.at_epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune, if this is the epoch to do so."""
        if self._prunes and self.masks is None and trainer.current_epoch == self.at_epoch:
            self._begin(trainer, pl_module)

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune now, or take the first of many small steps in a gradual pruning: nothing removed yet."""
        network, _ = find_network(pl_module, self.network)
        self._inputs = find_example(trainer, pl_module, self.input_shape)
        if self._over is not None:
            self._gradual = Gradual(begun=trainer.global_step)
            weights = prunable(network, self._options["exclude"])
            return self._keep(trainer, pl_module, Masks({name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}))
        started = time.perf_counter()
        if self._from_file is not None:
            masks, how = self._from_file, "masks from a file"
        else:
            assert self.pruner is not None
            how = type(self.pruner).__name__
            masks = self._choose(trainer, pl_module, network)
        self._keep(trainer, pl_module, _first(trainer, masks))
        self._report(trainer, network, f"{how} kept", f" in {time.perf_counter() - started:.1f} s")

    def _choose(self, trainer: Trainer, pl_module: LightningModule, network: nn.Module) -> Masks:
        """The masks that the pruner chooses."""
        assert self.pruner is not None
        hidden = not trainer.is_global_zero or trainer.progress_bar_callback is None
        rewound, previous = {}, None
        if self.trained is not None:
            rewound = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            load_weights(network, self.trained)
            previous = load_masks(self.trained)
        with tqdm(total=self._rounds, desc=f"Pruning, {type(self.pruner).__name__}", unit="round", leave=False, disable=hidden) as bar:

            def on_round(index: int, density: float) -> None:
                bar.update()
                show_density(trainer.loggers, index, density)

            masks = self._prune(trainer, pl_module, network, masks=previous, on_round=on_round, **self._options)
        if trainer.world_size > 1:
            # Every rank chose for itself, and what the first one kept another may have zeroed (or drawn anew) already.
            for parameter, _ in masks.parameters(network):
                parameter.data.copy_(trainer.strategy.broadcast(parameter.data))
        if self.trained is not None:
            network.load_state_dict(rewound)
        return masks

    def _prune(self, trainer: Trainer, pl_module: LightningModule, network: nn.Module, **options: Any) -> Masks:
        assert self.pruner is not None
        return prune(
            network,
            self.pruner,
            example_input=self._inputs,
            batches=find_batches(trainer, self.pruner) if self.pruner.needs_batches else (),
            loss=find_loss(pl_module),
            **options,
        )

    def _keep(self, trainer: Trainer, pl_module: LightningModule, masks: Masks) -> None:
        """From now on these are the masks: in the network, in its averages, and after every step."""
        self.masks = masks
        network, _ = find_network(pl_module, self.network)
        self.masks.apply(network)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # the trainer's connectors set it
            # An average was copied before this, and would fade towards the zeros instead of holding them.
            if isinstance(callback, WeightAveraging) and callback._average_model is not None:
                average: Any = callback._average_model.module
                self.masks.apply(find_network(average, self.network)[0])
        self._let_go()
        for optimizer in trainer.optimizers:
            self._holds[id(optimizer)] = self.masks.hold(network, optimizer)
        if folder := _run(trainer):
            self.masks.save(folder / "masks.safetensors")

    def _report(self, trainer: Trainer, network: nn.Module, how: str, took: str) -> None:
        """Say what was kept.

        Raises:
            DeadNetwork: if no path is left, unless a warning is enough.
        """
        assert self.masks is not None
        self.diagnosis = told = diagnose(network, self.masks, example_input=self._inputs)
        rank_zero_info(
            f"Pruning: {how} {told.kept:,} of {told.total:,} weights (density {told.density:.6g},"
            f" effective {told.effective_density:.6g}){took}."
        )
        rank_zero_info(told.table())
        for note in (self.pruner.notes if self.pruner is not None and self._from_file is None else ()) or told.notes:
            rank_zero_info(f"Pruning: {note}.")
        show_diagnosis(trainer.loggers, told)
        if folder := _run(trainer):
            told.to_json(folder / "pruning.json")
        if message := told.collapse:
            if not told.alive and self.on_collapse == "error":
                raise DeadNetwork(f"{message}, or on_collapse warn to train it anyway")
            rank_zero_warn(f"Pruning: {message}")

    # -- training

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """In a gradual pruning: cut, if a round is due."""
        if self._gradual is None or self._over is None or self.pruner is None or self.masks is None:
            return
        due = self._gradual.due(trainer.global_step, self._last_step, self._rounds)
        if due <= self._gradual.done:
            return
        network = find_network(pl_module, self.network)[0]
        self._inputs = self._inputs or find_example(trainer, pl_module, self.input_shape)
        density, kept = self._options["density"], self._options["kept"]
        target = as_density(density) if density is not None else Fraction(kept, self.masks.total)
        schedule = SCHEDULES[self._options["schedule"] or self.pruner.schedule]
        then = schedule(target, Fraction(due, self._rounds)) if due < self._rounds else target
        options = self._options | {"density": then, "kept": None, "rounds": 1}
        self._keep(trainer, pl_module, _first(trainer, self._prune(trainer, pl_module, network, masks=self.masks, **options)))
        self._gradual.done = due
        show_density(trainer.loggers, due, self.masks.density)
        if due == self._rounds:
            self._report(trainer, network, f"{type(self.pruner).__name__} has kept", f" by step {trainer.global_step}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so, if training ended too early for all that was asked."""
        if self._prunes and self.masks is None:
            rank_zero_warn(f"Pruning: training ended before epoch {self.at_epoch}, so nothing was pruned")
        elif self._gradual is not None and self._over is not None and self.masks is not None and self._gradual.done < self._rounds:
            rank_zero_warn(
                f"Pruning: training ended after round {self._gradual.done} of {self._rounds}, at density {self.masks.density:.6g}"
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Gradients of removed weights are zero before anything is measured across them: a clipped norm counts living weights only."""
        if hold := self._holds.get(id(optimizer)):
            hold.mask_gradients()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the optimisers go."""
        self._let_go()

    def _let_go(self) -> None:
        for hold in self._holds.values():
            hold.remove()
        self._holds.clear()

    # -- checkpoints

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the masks into the checkpoint, under one fixed key whatever this class is called."""
        _, prefix = find_network(pl_module, self.network)
        state: dict[str, Any] = {"network": prefix}
        checkpoint[KEY] = state
        if self.masks is not None:
            state["masks"] = self.masks.state_dict()
        if self._gradual is not None:
            state["gradual"] = asdict(self._gradual)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the masks out of a checkpoint that has them; nothing will be pruned then, but for what is left of a gradual pruning."""
        state = checkpoint.get(KEY, {})
        if state.get("masks") is not None:
            self.masks, self._restored = Masks.from_state_dict(state["masks"]), True
        if state.get("gradual") is not None:
            self._gradual = Gradual(**state["gradual"])


def _first(trainer: Trainer, masks: Masks) -> Masks:
    """The first rank's masks: every rank chooses for itself, and all must hold the same."""
    return Masks.from_state_dict(trainer.strategy.broadcast(masks.state_dict()))


def _run(trainer: Trainer) -> Path | None:
    """The run's folder, for the rank that writes files. Lightning broadcasts its name, so every rank has to ask."""
    folder = trainer.log_dir if isinstance(trainer.logger, (CSVLogger, TensorBoardLogger)) else None
    return Path(folder) if folder is not None and trainer.is_global_zero else None


def _untimely(trainer: Trainer) -> str:
    return (
        f"{str(trainer.ckpt_path)!r} was trained without masks and would be pruned in mid-training; go on dense with the overlay"
        " pruners/dense, prune at an epoch that lies ahead (at_epoch), or start anew without ckpt_path"
    )
