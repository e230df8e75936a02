"""Classifier: the one LightningModule, around any network that turns images into logits."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from synflow_pl.training.mean_loss import MeanLoss

__all__ = ["Classifier"]


class Classifier(LightningModule):
    """Trains a network to classify images and logs
    ``{train,val,test}/{loss,accuracy,accuracy_top5}``, and ``test_each_epoch/...`` where the data
    module has such an option.

    Args:
        network: images (N, C, H, W) to logits (N, num_classes).
        num_classes: classes, at least 2; the command line takes it from the data.
        optimizer: class path (torch.optim.SGD) and options; called with the parameters.
        scheduler: class path (torch.optim.lr_scheduler.MultiStepLR) and options; called with the
            optimiser and stepped once an epoch.
        loss: (logits, labels) to the mean loss; by default torch.nn.CrossEntropyLoss.
        decay_norm_and_bias: apply weight decay to norms and biases as well, as most papers' code
            does; ``false`` spares all parameters with one dimension.
        compile: run the network through torch.compile, in place: its names, and so its checkpoints,
            stay those of the plain one.
        channels_last: hold convolutions and images with channels innermost in memory, which is
            faster on GPUs in mixed precision.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int = 10,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(
            parameters, lr=0.1, momentum=0.9, nesterov=True
        ),
        scheduler: LRSchedulerCallable | None = None,
        loss: nn.Module | None = None,
        decay_norm_and_bias: bool = True,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes: {num_classes} must be at least 2")
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._lr: float | None = None
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        self.decay_norm_and_bias = decay_norm_and_bias
        self.compiled = compile
        self.channels_last = channels_last
        accuracies = {"accuracy": MulticlassAccuracy(num_classes, average="micro")}
        if num_classes > 5:
            accuracies["accuracy_top5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
        metrics = MetricCollection(dict(accuracies))
        self.train_metrics, self.val_metrics, self.test_metrics = (
            metrics.clone(prefix=f"{x}/") for x in ("train", "val", "test")
        )
        self.test_each_epoch_metrics = metrics.clone(prefix="test_each_epoch/")
        self.losses = nn.ModuleDict(
            {f"{stage}_loss": MeanLoss() for stage in ("train", "val", "test", "test_each_epoch")}
        )

    @property
    def lr(self) -> float | None:
        """Learning rate that is used instead of the optimiser's own; ``None`` for that one.
        Lightning's LearningRateFinder sets it.

        Setting it during a fit also changes the optimisers and what their schedules start from.
        """
        return self._lr

    @lr.setter
    def lr(self, lr: float | None) -> None:
        self._lr = lr
        if self._trainer is None or lr is None:
            return
        for optimizer in self._trainer.optimizers:
            _set_lr(optimizer, lr)
        for config in self._trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "base_lrs"):  # ReduceLROnPlateau has none
                config.scheduler.base_lrs = [lr] * len(config.scheduler.base_lrs)

    def setup(self, stage: str) -> None:
        """Compile the network and lay it out in memory, in the process that is going to run it."""
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if self.compiled and self.network._compiled_call_impl is None:
            self.network.compile()

    def on_fit_start(self) -> None:
        """Reset all metrics: a fit that was interrupted left its own in them."""
        self._reset_metrics("train", "val", "test_each_epoch")

    def on_validation_start(self) -> None:
        """Reset the metrics of a validation."""
        self._reset_metrics("val", "test_each_epoch")

    def on_test_start(self) -> None:
        """Reset the metrics of a test."""
        self._reset_metrics("test")

    def _reset_metrics(self, *stages: str) -> None:
        metric: Any
        for stage in stages:
            metrics: list[Any] = [getattr(self, f"{stage}_metrics"), self.losses[f"{stage}_loss"]]
            for metric in metrics:
                metric.reset()

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(images)
        return logits

    def _step(self, batch: tuple[Tensor, Tensor], stage: str, **options: Any) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss: Tensor = self.loss(logits, labels)
        metrics: MetricCollection = getattr(self, f"{stage}_metrics")
        metrics.update(logits.detach(), labels)
        mean_loss: Any = self.losses[f"{stage}_loss"]
        mean_loss.update(loss, len(images))
        options |= {"on_step": False, "on_epoch": True, "batch_size": len(images)}
        self.log(f"{stage}/loss", mean_loss, prog_bar=stage in ("train", "val"), **options)
        self.log_dict(metrics, **options)
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        loss = self._step(batch, "train")
        if self.trainer.world_size == 1:
            return loss
        # DDP takes the plain mean of the ranks' gradients. Where a rank has an image more or less
        # than another (the last batch of an epoch), that is not the gradient of the mean over all
        # images unless each rank's loss counts by its images.
        images = torch.tensor(float(len(batch[1])), device=self.device)
        mean = self.trainer.strategy.reduce(
            images.clone(), reduce_op="mean"
        )  # in place, hence the copy
        return loss * (images / mean)

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # Ours is the one data module with a second loader that is no validation.
        if getattr(getattr(self.trainer, "datamodule", None), "test_each_epoch", False):
            self._step(
                batch, "test_each_epoch" if dataloader_idx else "val", add_dataloader_idx=False
            )
        else:
            if (
                dataloader_idx and not batch_idx
            ):  # the metrics of the loader before have been computed
                self._reset_metrics("val")
            self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self._step(batch, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Class probabilities (N, num_classes)."""
        images, _labels = batch
        return self(images).softmax(1)

    def configure_optimizers(self) -> Any:
        """The optimiser, with or without weight decay on norms and biases, and its scheduler."""
        parameters = [
            parameter for parameter in self.network.parameters() if parameter.requires_grad
        ]
        groups: Any = parameters
        if not self.decay_norm_and_bias:
            groups = [
                {"params": [parameter for parameter in parameters if parameter.dim() > 1]},
                {
                    "params": [parameter for parameter in parameters if parameter.dim() <= 1],
                    "weight_decay": 0.0,
                },
            ]
        optimizer = self.optimizer(groups)
        if self._lr is not None:
            _set_lr(optimizer, self._lr)
        if self.scheduler is None:
            return optimizer
        scheduler = self.scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            # A metric of the validation is there in the epochs that are validated.
            validated = self._trainer.check_val_every_n_epoch if self._trainer is not None else None
            frequency = 1 if scheduler.monitor.startswith("train/") else validated or 1
            return {
                "optimizer": optimizer,
                "lr_scheduler": {
                    "scheduler": scheduler,
                    "monitor": scheduler.monitor,
                    "frequency": frequency,
                },
            }
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ValueError(
                "model.scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau does not say which metric it monitors; use"
                " pytorch_lightning.cli.ReduceLROnPlateau with model.scheduler.monitor, such as val/loss"
            )
        return [optimizer], [scheduler]


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group, and what schedules start from."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if "initial_lr" in group:
            group["initial_lr"] = lr
