"""Score the network of a LightningModule with the inputs, batches and loss of its training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from tqdm import tqdm

from synflow_pl.diagnosis import MaskHistory
from synflow_pl.masks import Masks
from synflow_pl.pruners import Pruner
from synflow_pl.pruning import PruningOptions, prune
from synflow_pl.training.checkpoints import load_masks, load_weights
from synflow_pl.training.introspection import FreshBatches, find_batches, find_example, find_loss
from synflow_pl.training.losses import BROADCAST, Loss
from synflow_pl.training.precision import scorable, unrounded
from synflow_pl.training.pruning_report import PruningReport

__all__ = ["Scoring"]

Batches = Sequence[tuple[Tensor, Tensor]]


class Scoring:
    """Choose masks with a pruner during one fit, without applying them.

    Args:
        loss: Loss of pruners that score on data; ``None`` uses that of the module.
        input_shape: Shape of an input without the batch dimension; ``None`` uses that of the data.
        fresh_batches: Whether each round scores on other images.

    Attributes:
        inputs: Example inputs of the network; empty before :meth:`example` is called.
        unrounded: Tensors of the network before the Trainer rounded them, by name.
    """

    def __init__(
        self, loss: Loss | None, input_shape: Sequence[int] | None, fresh_batches: bool
    ) -> None:
        self._loss, self._input_shape, self._fresh_batches = loss, input_shape, fresh_batches
        self.inputs: tuple[Tensor, ...] = ()
        self.unrounded: dict[str, Tensor] = {}

    def copy_unrounded(self, trainer: Trainer, network: nn.Module) -> None:
        """Store copies of the tensors that the Trainer will round, in :attr:`unrounded`.

        Args:
            trainer: Trainer that is about to train.
            network: Network that will be pruned.
        """
        self.unrounded = unrounded(trainer, network)

    def example(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Tensor, ...]:
        """Return the example inputs of the network, and store them in :attr:`inputs`.

        Args:
            trainer: Trainer with the data module or the training batches.
            pl_module: Module that is trained.
        """
        self.inputs = self.inputs or find_example(trainer, pl_module, self._input_shape)
        return self.inputs

    def find_loss(
        self, pl_module: LightningModule, network: nn.Module, pruner: Pruner
    ) -> Loss | None:
        """Return the loss of a pruner that scores on data, else ``None``.

        Args:
            pl_module: Module that is trained.
            network: Network that is pruned.
            pruner: Pruner that computes the scores.

        Raises:
            ValueError: If the module has no such loss, or several.
        """
        if not pruner.needs_batches:
            return None
        return self._loss or find_loss(pl_module, network)

    def choose(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        network: nn.Module,
        pruner: Pruner,
        options: PruningOptions,
        report: PruningReport,
        *,
        history: MaskHistory | None = None,
        score_from: Path | None = None,
        attribute: str = "",
    ) -> Masks:
        """Return the masks that a pruner chooses in all its rounds, with a progress bar.

        Half-precision weights are scored as they were before they were rounded. With a checkpoint,
        its weights are scored, and its masks are pruned further. The network keeps its weights,
        unless the pruner initialises them again.

        Args:
            trainer: Trainer whose loggers get the density after each round.
            pl_module: Module that is trained.
            network: Network that is pruned.
            pruner: Pruner that computes the scores.
            options: Options of the pruning.
            report: Report that is given the rounds of the pruning, for its figures.
            history: History to which the masks of each round are added.
            score_from: Path of a checkpoint whose weights are scored.
            attribute: Attribute of the LightningModule that holds the network, by which its weights
                are selected in the checkpoint.
        """
        scored = scorable(network, self.unrounded)
        rewound, previous = {}, None
        if score_from is not None:
            rewound = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            load_weights(scored, score_from, attribute=attribute)
            previous = load_masks(score_from, attribute)
        with tqdm(
            total=pruner.rounds if options.rounds is None else options.rounds,
            desc=f"{report.heading}, {type(pruner).__name__}",
            unit="round",
            leave=False,
            disable=trainer.progress_bar_callback is None,
        ) as bar:

            def on_round(index: int, density: float, masks: Mapping[str, Tensor]) -> None:
                bar.update()
                report.show_round(trainer, index, density)
                if history is not None:
                    history(index, density, masks)

            masks = self.prune(
                trainer,
                pl_module,
                scored,
                pruner,
                options,
                report,
                masks=previous,
                on_round=on_round,
            )
        if score_from is not None or scored is not network:
            network.load_state_dict(rewound or scored.state_dict())
        return masks

    def prune(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        network: nn.Module,
        pruner: Pruner,
        options: PruningOptions,
        report: PruningReport,
        *,
        masks: Masks | None,
        first_round: int = 0,
        on_round: Callable[[int, float, Mapping[str, Tensor]], None] | None = None,
    ) -> Masks:
        """Call :func:`synflow_pl.prune` with the inputs, batches and loss of the training.

        Args:
            trainer: Trainer with the data module or the training batches.
            pl_module: Module that is trained.
            network: Network that is scored and pruned in place.
            pruner: Pruner that computes the scores.
            options: Options of the pruning.
            report: Report that is given the rounds of the pruning, for its figures.
            masks: Masks that are pruned further, or ``None``.
            first_round: Number of earlier rounds, which fresh batches skip.
            on_round: Function that is called after each round.

        Raises:
            ValueError: If the loss of the module compares outputs and labels of different shapes.
        """
        recording = report.recording_pruner(trainer, pruner, options.rounds)
        arguments: dict[str, Any] = {}
        if pruner.needs_batches:
            arguments = {
                "loss": self.find_loss(pl_module, network, pruner),
                "batches": self._batches(trainer, pruner, first_round),
            }
        with warnings.catch_warnings():
            if self._loss is None:
                # The module's training step may bring outputs and labels to one shape; its loss
                # alone does not.
                warnings.filterwarnings("error", BROADCAST, UserWarning)
            try:
                pruned = prune(
                    network,
                    recording or pruner,
                    example_input=self.example(trainer, pl_module),
                    masks=masks,
                    on_round=on_round,
                    **vars(options),
                    **arguments,
                )
            except UserWarning as warning:
                raise ValueError(
                    f"the loss of {type(pl_module).__name__} compares outputs and labels of"
                    " different shapes; give PruneAtInit loss=, a function of (outputs, labels)"
                    " that brings them to one shape as the training step does"
                ) from warning
        if recording is not None:
            report.add(recording)
        return pruned

    def _batches(
        self, trainer: Trainer, pruner: Pruner, first_round: int
    ) -> Batches | Callable[[int], Batches]:
        if not self._fresh_batches:
            return find_batches(trainer, pruner)
        fresh = FreshBatches(trainer, pruner)
        return lambda index: fresh(first_round + index)
