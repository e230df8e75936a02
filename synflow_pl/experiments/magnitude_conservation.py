"""Conservation of magnitudes by training (Tanaka et al. 2020, Section 5 and Figure 5b).

Under gradient flow a squared weight changes by d/dt (w^2) = -2 w dL/dw: minus twice its synaptic
saliency, whose total is equal in every layer (without normalisation layers, biases and weight
decay). So the totals of squared weights change by the same amount in all layers, and the more they
change, the more they agree. After training, magnitudes are roughly conserved, and magnitude pruning
therefore keeps small layers, which it does not at initialisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from synflow_pl.experiments.layers import LayerScore
from synflow_pl.prunable_parameters import prunable
from synflow_pl.training.introspection import find_network

__all__ = ["Snapshot", "SquaredMagnitudes"]


@dataclass(frozen=True)
class Snapshot:
    """Squared weights of each layer at one time of a training.

    Attributes:
        epoch: Number of epochs trained; 0 is the initialisation.
        layers: Sum of the squared weights of each layer.
    """

    epoch: int
    layers: list[LayerScore]


class SquaredMagnitudes(Callback):
    """Callback that records the squared weights of each layer before training and after each epoch.

    Attributes:
        snapshots: Records of the last fit, in the order of the epochs.
    """

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Delete the snapshots of an earlier fit."""
        self.snapshots = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the weights before training."""
        self._record(pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the weights after an epoch."""
        self._record(pl_module, trainer.current_epoch + 1)

    @torch.no_grad()
    def _record(self, pl_module: LightningModule, epoch: int) -> None:
        network, _ = find_network(pl_module, None)
        layers = [
            LayerScore(name, w.numel(), float(w.double().square().sum()))
            for name, w in prunable(network).items()
        ]
        self.snapshots.append(Snapshot(epoch, layers))
