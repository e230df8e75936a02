"""Train and evaluate any network that maps images to logits."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from synflow_pl.training.fully_shard import shard_network
from synflow_pl.training.mean_loss import MeanLoss

__all__ = ["Classifier"]


class Classifier(LightningModule):
    """Train a network to classify images, and log its loss and accuracy.

    The metrics are ``{train,val,test}/{loss,accuracy,accuracy_top5}``, the last of them only for
    more than 5 classes, and ``test_each_epoch/...`` if the data module has that option turned on.

    Args:
        network: Network that maps images (N, C, H, W) to logits (N, num_classes).
        num_classes: Number of classes, at least 2; the command line takes it from the data.
        optimizer: Function that is called with the parameters and returns an optimiser; on the
            command line, a class path (torch.optim.SGD) and its options.
        scheduler: Function that is called with the optimiser and returns a schedule, which is
            stepped once an epoch; on the command line, a class path
            (torch.optim.lr_scheduler.MultiStepLR) and its options.
        loss: Module that maps (logits, labels) to the mean loss; by default
            torch.nn.CrossEntropyLoss.
        decay_norm_and_bias: Whether weight decay applies to normalisations and biases as well, as
            in most papers' code; ``false`` exempts all parameters with one dimension.
        compile: Whether the network, or each block of a sharded one, runs through torch.compile.
            It is compiled in place, so the names in its checkpoints stay those of the plain
            network.
        channels_last: Whether convolutions and images are held with channels innermost in memory,
            which is faster on GPUs in mixed precision; of a sharded network, only the images.

    Raises:
        ValueError: If ``num_classes`` is less than 2.

    Example:
        >>> import torch
        >>> from synflow_pl.training import Classifier
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 10))
        >>> classifier = Classifier(network, num_classes=10)
        >>> classifier(torch.ones(2, 1, 4, 4)).shape
        torch.Size([2, 10])
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
        """Learning rate that replaces the optimiser's own, or ``None`` to use the optimiser's own.

        Lightning's LearningRateFinder sets it. Setting it during a fit also changes the learning
        rate of the optimisers and the initial learning rate of their schedules.
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
        """Compile the network and set its memory format, in the process that will run it."""
        if self.device_mesh is not None:
            return  # fully_shard() needs contiguous weights, and its blocks are compiled one by one
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if self.compiled and self.network._compiled_call_impl is None:
            self.network.compile()

    def configure_model(self) -> None:
        """Shard the network over the data-parallel devices of ModelParallelStrategy."""
        if self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            shard_network(self.network, mesh, compile=self.compiled)

    def on_fit_start(self) -> None:
        """Reset all metrics, since an interrupted fit leaves its values in them."""
        self._reset_metrics("train", "val", "test_each_epoch")

    def on_validation_start(self) -> None:
        """Reset the validation metrics."""
        self._reset_metrics("val", "test_each_epoch")

    def on_test_start(self) -> None:
        """Reset the test metrics."""
        self._reset_metrics("test")

    def _reset_metrics(self, *stages: str) -> None:
        metric: Any
        for stage in stages:
            metrics: list[Any] = [getattr(self, f"{stage}_metrics"), self.losses[f"{stage}_loss"]]
            for metric in metrics:
                metric.reset()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, C, H, W)."""
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
        # DDP takes the unweighted mean of the ranks' gradients. In the last batch of an epoch ranks
        # may have different numbers of images; weighting each loss by its number of images makes
        # the result the gradient of the mean over all images.
        images = torch.tensor(float(len(batch[1])), device=self.device)
        # reduce() changes its argument in place.
        mean = self.trainer.strategy.reduce(images.clone(), reduce_op="mean")
        return loss * (images / mean)

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # With this option, the second dataloader of our data module has the test images.
        if getattr(getattr(self.trainer, "datamodule", None), "test_each_epoch", False):
            self._step(
                batch, "test_each_epoch" if dataloader_idx else "val", add_dataloader_idx=False
            )
        else:
            if dataloader_idx and not batch_idx:
                # Lightning has computed the metrics of the previous dataloader.
                self._reset_metrics("val")
            self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self._step(batch, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Return the class probabilities (N, num_classes) of a batch."""
        images, _labels = batch
        return self(images).softmax(1)

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its scheduler, in a form that Lightning accepts.

        Raises:
            ValueError: If the scheduler is torch's ReduceLROnPlateau, which names no metric.
        """
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
            # Validation metrics exist only in epochs with a validation.
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
                "model.scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau does not say which"
                " metric it monitors; use pytorch_lightning.cli.ReduceLROnPlateau with"
                " model.scheduler.monitor, such as val/loss"
            )
        return [optimizer], [scheduler]


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate and the initial learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if "initial_lr" in group:
            group["initial_lr"] = lr
