"""Magnitude: training makes it conserved (Tanaka et al. 2020, Section 5 and Figure 5b).

Under gradient flow a squared weight changes by d/dt (w^2) = -2 w dL/dw, minus twice its synaptic
saliency, whose total is the same in every layer (without normalisation layers, biases and weight
decay). So all layers gain or lose the same, whatever they began with, and the more they move, the
more their totals agree: magnitude after training is roughly conserved, and magnitude pruning after
training spares small layers as it does not at initialisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from synflow_pl.experiments.layers import LayerScore
from synflow_pl.masks import prunable
from synflow_pl.training.introspection import find_network

__all__ = ["Snapshot", "SquaredMagnitudes"]


@dataclass(frozen=True)
class Snapshot:
    """After ``epoch`` epochs of training (0: at initialisation), the squared weights of each
    layer.
    """

    epoch: int
    layers: list[LayerScore]


class SquaredMagnitudes(Callback):
    """Sums the squared weights of each layer before training and after every epoch, into
    ``snapshots``.
    """

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the snapshots of an earlier fit."""
        self.snapshots = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what training starts from."""
        self._look(pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what the epoch has made of it."""
        self._look(pl_module, trainer.current_epoch + 1)

    @torch.no_grad()
    def _look(self, pl_module: LightningModule, epoch: int) -> None:
        network, _ = find_network(pl_module, None)
        layers = [
            LayerScore(name, w.numel(), float(w.double().square().sum()))
            for name, w in prunable(network).items()
        ]
        self.snapshots.append(Snapshot(epoch, layers))
