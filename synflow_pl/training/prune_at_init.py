"""PruneAtInit: the one callback. Prunes at the start of a fit, holds the zeros while it trains, carries the masks in checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from tqdm import tqdm

from synflow_pl.diagnosis import DeadNetwork, Diagnosis, diagnose
from synflow_pl.masks import Hold, Masks
from synflow_pl.pruners import Pruner
from synflow_pl.pruners.sanity import SANITY
from synflow_pl.pruning import check_options, prune
from synflow_pl.training.checkpoints import KEY
from synflow_pl.training.panels import show_density, show_diagnosis

__all__ = ["PruneAtInit"]

# From a data module that has no pruning_batches(): as many training images as SNIP's paper scores CIFAR-10 on, to the end of a batch.
_IMAGES = 128


class PruneAtInit(Callback):
    """Prunes the network at ``on_fit_start`` and keeps removed weights at zero from then on.

    Works around any LightningModule and any data. The masks travel in every full checkpoint under one fixed key; a checkpoint that
    has masks is never pruned again, whatever the options say.

    Args:
        pruner: gives the scores; ``None`` trains the whole network.
        density: fraction of prunable weights kept, in (0, 1].
        kept: instead of ``density``, the number of weights kept.
        rounds: score-then-cut steps, at least 1; ``None`` is the pruner's own number.
        schedule: density after each round.
        scope: all layers in one ranking, or each layer alone.
        bias: mask biases too, each living as long as its unit.
        norm: the same for gains and shifts of normalisations that read a prunable layer.
        exclude: shell-style patterns of parameter names, within the network, that stay dense; one or a list.
        train_mode: data-driven pruners score in train mode, BatchNorm on each batch's own statistics; running ones do not move.
        sanity: a sanity check of Frankle et al. 2021: invert the scores, shuffle the masks within layers, or reinitialise the weights.
        masks: path of a masks file to train with; nothing is pruned then, and the options above are not used.
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
        rounds: int | None = None,
        schedule: Literal["exponential", "linear"] = "exponential",
        scope: Literal["global", "local"] = "global",
        bias: bool = False,
        norm: bool = False,
        exclude: Sequence[str] | str = (),
        train_mode: bool = False,
        sanity: Literal["invert", "shuffle", "reinitialise"] | None = None,
        masks: str | os.PathLike[str] | None = None,
        network: str | None = None,
        input_shape: Sequence[int] | None = None,
        on_collapse: Literal["error", "warn"] = "error",
    ) -> None:
        self._from_file = Masks.load(masks) if masks is not None else None
        if self._from_file is None and pruner is not None:
            check_options(density=density, kept=kept, rounds=rounds, schedule=schedule, scope=scope)
        elif self._from_file is None and (density not in (None, 1) or kept is not None or rounds is not None):
            raise ValueError(
                f"density={density}, kept={kept}, rounds={rounds}, but no pruner; name one, or leave them out for a dense network"
            )
        if on_collapse not in ("error", "warn"):
            raise ValueError(f"on_collapse: {on_collapse!r} is not one of error, warn")
        if sanity is not None and (sanity not in SANITY or pruner is None):
            raise ValueError(f"sanity: {sanity!r} must be one of {', '.join(SANITY)}, and needs a pruner")
        self.pruner = SANITY[sanity](pruner) if sanity is not None and pruner is not None else pruner
        self.network = network
        self.input_shape = tuple(input_shape) if input_shape is not None else None
        self.on_collapse = on_collapse
        self.masks: Masks | None = None
        self.diagnosis: Diagnosis | None = None
        self._options: dict[str, Any] = {
            "density": density, "kept": kept, "rounds": rounds, "schedule": schedule, "scope": scope,
            "bias": bias, "norm": norm, "exclude": (exclude,) if isinstance(exclude, str) else tuple(exclude), "train_mode": train_mode,
        }  # fmt: skip
        self._restored = False
        self._holds: dict[int, Hold] = {}

    # -- pruning

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work before anything is computed."""
        if stage != "fit" or (self.pruner is None and self._from_file is None):
            return
        if trainer.strategy.restore_checkpoint_after_setup:
            raise ValueError(
                f"{type(trainer.strategy).__name__} shards parameters, and a shard cannot be pruned; use ddp, or drop the pruner"
            )
        network, _ = self._find_network(pl_module)
        if self._from_file is not None:
            self._from_file.parameters(network)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune, unless there are masks already; then hold them."""
        network, _ = self._find_network(pl_module)
        if self.masks is not None:
            if self._restored:
                rank_zero_info(f"Pruning: not again; the checkpoint's masks are kept (density {self.masks.density:.6g}).")
            self.masks.apply(network)
        elif self.pruner is not None or self._from_file is not None:
            if trainer.ckpt_path is not None:
                raise ValueError(
                    f"{str(trainer.ckpt_path)!r} was trained without masks and would be pruned in mid-training; go on dense"
                    " with the overlay pruners/dense, or start anew without ckpt_path"
                )
            self.masks = self._choose(trainer, pl_module, network)
        if self.masks is not None:
            for optimizer in trainer.optimizers:
                self._holds[id(optimizer)] = self.masks.hold(network, optimizer)

    def _choose(self, trainer: Trainer, pl_module: LightningModule, network: nn.Module) -> Masks:
        example = self._example(trainer, pl_module)
        started = time.perf_counter()
        if self._from_file is not None:
            masks, how = self._from_file, "masks from a file"
        else:
            assert self.pruner is not None
            how = type(self.pruner).__name__
            rounds = self._options["rounds"] or self.pruner.rounds
            hidden = not trainer.is_global_zero or trainer.progress_bar_callback is None
            with tqdm(total=rounds, desc=f"Pruning, {how}", unit="round", leave=False, disable=hidden) as bar:

                def on_round(index: int, density: float) -> None:
                    bar.update()
                    show_density(trainer.loggers, index, density)

                masks = prune(
                    network,
                    self.pruner,
                    example_input=example,
                    batches=self._batches(trainer, self.pruner) if self.pruner.needs_batches else (),
                    loss=self._loss(pl_module),
                    on_round=on_round,
                    **self._options,
                )
        # Every rank chose for itself; what counts is what the first one chose.
        masks = Masks.from_state_dict(trainer.strategy.broadcast(masks.state_dict()))
        if trainer.world_size > 1:
            # And the weights that it kept: another rank may have zeroed some of them already.
            for parameter, _ in masks.parameters(network):
                parameter.data.copy_(trainer.strategy.broadcast(parameter.data))
        masks.apply(network)
        seconds = time.perf_counter() - started
        rank_zero_info(
            f"Pruning: {how} kept {masks.kept:,} of {masks.total:,} weights (density {masks.density:.6g}) in {seconds:.1f} s."
        )
        self._report(trainer, network, masks, example)
        # Lightning broadcasts the folder's name, so every rank has to ask for it.
        folder = trainer.log_dir if isinstance(trainer.logger, (CSVLogger, TensorBoardLogger)) else None
        if trainer.is_global_zero and folder is not None:
            masks.save(Path(folder) / "masks.safetensors")
        return masks

    def _report(self, trainer: Trainer, network: nn.Module, masks: Masks, example: tuple[Tensor, ...]) -> None:
        self.diagnosis = told = diagnose(network, masks, example_input=example)
        rank_zero_info(told.table())
        for note in (self.pruner.notes if self.pruner is not None and self._from_file is None else ()) or told.notes:
            rank_zero_info(f"Pruning: {note}.")
        show_diagnosis(trainer.loggers, told)
        if not told.alive:
            where = f" ({told.collapsed[0]!r} has no weight left)" if told.collapsed else ""
            message = (
                f"the network is dead: no path of living weights leads from input to output at density {told.density:.6g}{where};"
                " try more rounds, a larger density, scope local, or on_collapse warn to train it anyway"
            )
            if self.on_collapse == "error":
                raise DeadNetwork(message)
            rank_zero_warn(message)
        elif told.collapsed:
            rank_zero_warn(f"Pruning: layers with no weight left, though a path remains: {', '.join(told.collapsed)}")

    def _find_network(self, pl_module: LightningModule) -> tuple[nn.Module, str]:
        """The network and the prefix of its parameters' names within the module."""
        name = (
            self.network
            if self.network is not None
            else "network"
            if isinstance(getattr(pl_module, "network", None), nn.Module)
            else ""
        )
        if not name:
            return pl_module, ""
        try:
            found = attrgetter(name)(pl_module)
        except AttributeError:
            found = None
        if not isinstance(found, nn.Module):
            children = ", ".join(child for child, _ in pl_module.named_children())
            raise ValueError(f"network: {type(pl_module).__name__} has no submodule {name!r}; its children are {children}")
        return found, f"{name}."

    def _example(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Tensor, ...]:
        device = pl_module.device
        shape = self.input_shape or getattr(getattr(trainer, "datamodule", None), "input_shape", None)
        if shape is not None:
            return (torch.ones(1, *shape, device=device),)
        example = pl_module.example_input_array
        if example is None:
            # One batch, as the training would see it, without moving any random state on.
            with isolate_rng():
                batch = next(iter(trainer.fit_loop._data_source.dataloader()))
            example = batch
            while not isinstance(example, Tensor):
                example = next(iter(example.values() if isinstance(example, dict) else example))
            example = example[:1]
        inputs = example if isinstance(example, tuple) else (example,)
        if not all(isinstance(tensor, Tensor) for tensor in inputs):
            raise ValueError("example_input_array must be a tensor or a tuple of tensors; or give PruneAtInit an input_shape")
        return tuple(tensor.to(device) for tensor in inputs)

    def _batches(self, trainer: Trainer, pruner: Pruner) -> list[tuple[Tensor, Tensor]]:
        """(images, labels) pairs to score on: what the data module gives for it, else the first batches of a training epoch."""
        given = getattr(getattr(trainer, "datamodule", None), "pruning_batches", None)
        if callable(given):
            return list(given())
        batches: list[tuple[Tensor, Tensor]] = []
        with isolate_rng():
            for batch in trainer.fit_loop._data_source.dataloader():
                pair = isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
                if not pair:
                    raise ValueError(
                        f"{type(pruner).__name__} scores on (images, labels) pairs of tensors, and a training batch is a"
                        f" {type(batch).__name__} of something else; give the data module a method pruning_batches() that lists them"
                    )
                batches.append((batch[0], batch[1]))
                if sum(len(images) for images, _ in batches) >= _IMAGES:
                    break
        return batches

    def _loss(self, pl_module: LightningModule) -> Callable[[Tensor, Tensor], Tensor]:
        """The classifier's own loss, (logits, labels) to a scalar."""
        loss = getattr(pl_module, "loss", None)
        return loss if callable(loss) else cross_entropy

    # -- training

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Gradients of removed weights are zero before anything is measured across them: a clipped norm counts living weights only."""
        if hold := self._holds.get(id(optimizer)):
            hold.mask_gradients()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the optimisers go."""
        for hold in self._holds.values():
            hold.remove()
        self._holds.clear()

    # -- checkpoints

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the masks into the checkpoint, under one fixed key whatever this class is called."""
        _, prefix = self._find_network(pl_module)
        checkpoint[KEY] = {"network": prefix}
        if self.masks is not None:
            checkpoint[KEY]["masks"] = self.masks.state_dict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the masks out of a checkpoint that has them; nothing will be pruned then."""
        state = checkpoint.get(KEY, {}).get("masks")
        if state is not None:
            self.masks, self._restored = Masks.from_state_dict(state), True
