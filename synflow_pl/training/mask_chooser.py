"""Choose masks by the scores of a pruner, with the inputs, batches and loss of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from tqdm import tqdm

from synflow_pl.compaction import freeze
from synflow_pl.diagnosis import MaskHistory
from synflow_pl.flow import acting_on, example_of
from synflow_pl.masks import Masks
from synflow_pl.prunable_parameters import prunable
from synflow_pl.pruners import Pruner
from synflow_pl.pruners.batch_loss import BatchLoss, as_batch_loss
from synflow_pl.pruners.drop_and_grow import DropAndGrow
from synflow_pl.pruning import prune
from synflow_pl.pruning_checks import Batches, rounds_advice
from synflow_pl.pruning_options import PruningOptions
from synflow_pl.training.checkpoints import load_masks
from synflow_pl.training.distributed import Ranks
from synflow_pl.training.gradual_pruning import density_after
from synflow_pl.training.introspection import (
    FreshBatches,
    find_batches,
    find_example,
)
from synflow_pl.training.module_loss import ModuleLoss
from synflow_pl.training.precision import scorable, unrounded
from synflow_pl.training.pruning_report import PruningReport
from synflow_pl.training.sharded_pruning import prune_shards
from synflow_pl.training.weight_loading import load_weights

__all__ = ["Fit", "MaskChooser"]


@dataclass(frozen=True)
class Fit:
    """Network that is pruned, and the fit in which that happens.

    Attributes:
        trainer: Trainer of the network.
        pl_module: Module that is trained.
        network: Network of the module that is pruned.
        attribute: Attribute of the module that holds the network; empty for the module itself.
        ranks: Ranks of the training.
        report: Report to which the rounds of a pruning are added, in place.
    """

    trainer: Trainer
    pl_module: LightningModule
    network: nn.Module
    attribute: str
    ranks: Ranks
    report: PruningReport


class MaskChooser:
    """Choose the masks of one network during one fit.

    ``prune()`` sets pruned weights of the network to zero on rank 0; the callback applies the masks
    on every rank.

    Args:
        pruner: Pruner that computes the scores; ``None`` for a dense training.
        options: Options of the pruning; ``None`` without a pruner or with masks from a file.
        from_file: Masks from a file, which are used instead of the pruner.
        loss: Function from (outputs, labels) to the loss that pruners score by on data.
        loss_fn: Function from (module, batch) to that loss. Without either of them, the module's
            ``training_step()`` returns it.
        input_shape: Shape of an input without the batch dimension; ``None`` uses that of the data.
        fresh_batches: Whether each round scores on other images.
        score_from: Path of a checkpoint whose weights are scored and whose masks are pruned
            further; ``None`` scores the weights of the network.
        freeze_dead: Whether biases, gains and shifts of units without a path of kept weights from
            the input are pruned.

    Attributes:
        pruner: Pruner that computes the scores; ``None`` for a dense training or masks from a file.
        inputs: Example inputs of the network; empty before :meth:`example` is called.
        unrounded: Tensors of the network before the Trainer rounded them, by name. The callback
            empties it when the fit has started.
    """

    def __init__(
        self,
        pruner: Pruner | None,
        options: PruningOptions | None,
        from_file: Masks | None,
        *,
        loss: Callable[[Any, Any], Tensor] | None,
        loss_fn: Callable[[Any, Any], Tensor] | None,
        input_shape: Sequence[int] | None,
        fresh_batches: bool,
        score_from: Path | None,
        freeze_dead: bool,
    ) -> None:
        self.pruner = pruner if from_file is None else None
        self._options, self._from_file = options, from_file
        self._loss, self._loss_fn = loss, loss_fn
        self._input_shape, self._fresh_batches = input_shape, fresh_batches
        self._score_from, self._freeze_dead = score_from, freeze_dead
        self.inputs: tuple[Tensor, ...] = ()
        self.unrounded: dict[str, Tensor] = {}

    @property
    def prunes(self) -> bool:
        """Return whether there are masks to choose."""
        return self.pruner is not None or self._from_file is not None

    @property
    def end_fraction(self) -> float | None:
        """Fraction of the training that a gradual pruning takes; ``None`` for pruning at once."""
        if self.pruner is None or isinstance(self.pruner, DropAndGrow):
            return None
        return self.pruner.end_fraction

    @property
    def rounds(self) -> int:
        """Number of rounds of the pruning unless it is automatic; 1 without a pruner."""
        if self.pruner is None or self._options is None:
            return 1
        rounds = self._options.rounds
        return rounds if isinstance(rounds, int) else self.pruner.rounds

    @property
    def automatic(self) -> bool:
        """Return whether the pruning itself chooses its number of rounds."""
        return self._options is not None and self._options.rounds == "auto"

    @property
    def source(self) -> str:
        """Name of the origin of the masks, for messages."""
        return type(self.pruner).__name__ if self._from_file is None else "masks from a file"

    @property
    def notes(self) -> Sequence[str]:
        """Notes of the pruner; empty without a pruner."""
        return self.pruner.notes if self.pruner is not None else ()

    @property
    def rounds_advice(self) -> str:
        """Advice on the number of rounds for a disconnected network; empty where none applies."""
        if self.pruner is None or self._options is None:
            return ""
        return rounds_advice(self.pruner, self._options.rounds)

    def history(self) -> MaskHistory | None:
        """Return an empty history of the rounds, or ``None`` for one round or regrown weights."""
        if self.pruner is None or self.pruner.regrows:
            return None
        return MaskHistory() if self.automatic or self.rounds > 1 else None

    def example(self, fit: Fit) -> tuple[Tensor, ...]:
        """Return the example inputs of the network, and store them in :attr:`inputs`.

        Args:
            fit: Network that is pruned, and its training.
        """
        self.inputs = self.inputs or find_example(
            fit.trainer, fit.pl_module, fit.network, self._input_shape
        )
        return self.inputs

    def copy_unrounded(self, trainer: Trainer, network: nn.Module) -> None:
        """Store copies of the weights that the Trainer will round, in :attr:`unrounded`.

        Nothing is stored if the weights of a checkpoint are scored, or none.

        Args:
            trainer: Trainer that has not rounded the weights yet.
            network: Network that is pruned when the fit starts.
        """
        if self._score_from is None and self._from_file is None:
            self.unrounded = unrounded(trainer, network)

    def choose(self, fit: Fit, history: MaskHistory | None) -> Masks:
        """Return the masks of the file, or those that the pruner chooses in all its rounds.

        Rank 0 chooses them, and every rank gets them. The kept weights do not change, unless the
        pruner initialises them again, which it does on rank 0 only.

        Args:
            fit: Network that is pruned, and its training.
            history: History to which the masks of each round are added, in place; or ``None``.
        """

        def choose() -> dict[str, object]:
            masks = self._from_file
            if masks is None:
                masks = self._choose_by_score(fit, history)
            if self._freeze_dead:
                inputs = example_of(fit.network, None, self.example(fit))
                masks = freeze(fit.network, masks, inputs)
            return masks.state_dict()

        return Masks.from_state_dict(fit.ranks.run_on_rank_zero(choose, long_timeout=True))

    def choose_by_shards(self, network: nn.Module, ranks: Ranks) -> Masks:
        """Return the masks of the file, or those chosen for a network that no rank holds whole.

        Args:
            network: Network with sharded parameters, which is not changed.
            ranks: Ranks of the training.

        Raises:
            ValueError: If the pruner or an option needs the whole network.
        """
        if (masks := self._from_file) is not None:
            return Masks.from_state_dict(ranks.run_on_rank_zero(masks.state_dict))
        assert self.pruner is not None
        assert self._options is not None
        if self._score_from is not None or self._freeze_dead:
            raise ValueError(
                "score_from and freeze_dead need the whole network, which no rank holds; create it"
                " in the module's constructor, without the meta device"
            )
        return prune_shards(network, self.pruner, self._options)

    def keep_all(self, fit: Fit) -> Masks:
        """Return masks that keep every weight, with which a gradual pruning begins.

        Args:
            fit: Network that will be pruned, and its training.

        Raises:
            ValueError: If the pruner will need a loss, and ``training_step()`` returns none.
        """
        assert self._options is not None
        self._find_loss(fit)
        acting = acting_on(fit.network, self.example(fit))
        weights = prunable(fit.network, self._options.exclude, self._options.include, acting)
        return Masks({name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()})

    def choose_round(self, fit: Fit, masks: Masks, *, done: int, due: int) -> Masks:
        """Return the masks of a gradual pruning after the rounds that are due.

        Rank 0 chooses them, and every rank gets them.

        Args:
            fit: Network that is pruned, and its training.
            masks: Masks of the network, which are pruned further.
            done: Number of completed rounds.
            due: Number of rounds that are completed afterwards; they are pruned in one step.
        """
        assert self.pruner is not None
        assert self._options is not None
        density = density_after(self._options, self.pruner, due, masks.total)
        options = replace(self._options, density=density, num_kept=None, rounds=1)

        def choose() -> dict[str, object]:
            scored = scorable(fit.network, {})
            return self._prune(fit, scored, options, first_round=done, masks=masks).state_dict()

        return Masks.from_state_dict(fit.ranks.run_on_rank_zero(choose))

    def _choose_by_score(self, fit: Fit, history: MaskHistory | None) -> Masks:
        """Return the masks that the pruner chooses, with a progress bar.

        Half-precision weights are scored as they were before they were rounded. The weights of a
        checkpoint are loaded, scored, and replaced by the network's own.
        """
        assert self._options is not None
        network = fit.network
        scored = scorable(network, self.unrounded)
        rewound, previous = {}, None
        if self._score_from is not None:
            rewound = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            load_weights(scored, self._score_from, attribute=fit.attribute)
            previous = load_masks(self._score_from, fit.attribute)
        with tqdm(
            total=None if self.automatic else self.rounds,
            desc=f"{fit.report.heading}, {self.source}",
            unit="round",
            leave=False,
            disable=fit.trainer.progress_bar_callback is None,
        ) as bar:

            def on_round(index: int, density: float, masks: Mapping[str, Tensor]) -> None:
                bar.update()
                fit.report.show_round(fit.trainer, index, density)
                if history is not None:
                    history(index, density, masks)

            masks = self._prune(fit, scored, self._options, masks=previous, on_round=on_round)
        if self._score_from is not None or scored is not network:
            network.load_state_dict(rewound or scored.state_dict())
        return masks

    def _prune(
        self,
        fit: Fit,
        scored: nn.Module,
        options: PruningOptions,
        *,
        first_round: int = 0,
        **arguments: Any,
    ) -> Masks:
        """Call ``prune()`` with the inputs, batches and loss of the training."""
        assert self.pruner is not None
        recording = fit.report.recording_pruner(fit.trainer, self.pruner, options.rounds)
        if self.pruner.needs_batches:
            arguments |= {"loss": self._find_loss(fit), "batches": self._batches(fit, first_round)}
        masks = prune(
            scored,
            recording or self.pruner,
            example_input=self.example(fit),
            **vars(options),
            **arguments,
        )
        if recording is not None:
            fit.report.add(recording)
        return masks

    def _find_loss(self, fit: Fit) -> BatchLoss | None:
        """Return the loss of a pruner that scores on data, else ``None``.

        Raises:
            ValueError: If no loss is given, and ``training_step()`` does not return one.
        """
        if self.pruner is None or not self.pruner.needs_batches:
            return None
        if self._loss is not None:
            return as_batch_loss(self._loss)
        return ModuleLoss(fit.trainer, fit.pl_module, fit.network, self._loss_fn)

    def _batches(self, fit: Fit, first_round: int) -> Batches | Callable[[int], Batches]:
        if not self._fresh_batches:
            return find_batches(fit.trainer, fit.pl_module)
        fresh = FreshBatches(fit.trainer, fit.pl_module)
        return lambda index: fresh(first_round + index)
