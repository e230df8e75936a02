"""The loss that a LightningModule trains on, by which data-driven pruners compute their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.distributed import GroupMember

from synflow_pl.graph.evaluation import evaluating
from synflow_pl.graph.example_inputs import Inputs, from_arguments
from synflow_pl.pruners.batch_loss import FunctionLoss

__all__ = ["ModuleLoss", "captured_inputs", "check_step"]


class ModuleLoss(FunctionLoss):
    """Loss of a LightningModule on a batch: that of its ``training_step()``, or of a function.

    The step runs with the weights that are scored. It logs nothing, and what it changes in the
    module is restored. It runs as in a training with one process, since only rank 0 prunes.

    Args:
        trainer: Trainer of the module.
        pl_module: Module that is trained.
        scored: Network of the module that is pruned, or the module itself.
        loss_fn: Function from (module, batch) to the mean loss of a batch; ``None`` uses
            ``training_step()``.

    Raises:
        ValueError: If there is no ``loss_fn``, and ``training_step()`` does not return a loss of
            one batch, as in :func:`check_step`.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        scored: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
    ) -> None:
        if loss_fn is None:
            check_step(pl_module)
        training_step: Any = pl_module.training_step
        super().__init__(loss_fn or training_step)
        self._trainer, self._pl_module, self._scored = trainer, pl_module, scored
        self._by_step = loss_fn is None
        step = f"training_step() of {type(pl_module).__name__}"
        self.name = step if self._by_step else "loss_fn"

    def modules(self, network: nn.Module) -> tuple[nn.Module, nn.Module]:
        return self._pl_module, self._scored

    @contextmanager
    def scoring(self) -> Iterator[None]:
        with (
            super().scoring(),
            _single_process(self._trainer, self._pl_module),
            _without_logging(self._trainer, self._pl_module),
        ):
            yield

    def evaluate(self, network: nn.Module, batch: Any, index: int) -> Any:
        if not self._by_step:
            return self.function(self._pl_module, batch)
        takes_index = is_param_in_hook_signature(self.function, "batch_idx", min_args=2)
        try:
            result: Any = self.function(*((batch, index) if takes_index else (batch,)))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise RuntimeError(
                f"{self.name} fails on a batch that the pruning would score by"
                f" ({type(error).__name__}: {error}); if it needs what only a training prepares,"
                " give PruneAtInit loss_fn=, a function of (module, batch) that returns the mean"
                " loss"
            ) from error
        return result.get("loss") if isinstance(result, Mapping) else result


def captured_inputs(
    trainer: Trainer, pl_module: LightningModule, network: nn.Module, batch: Any
) -> Inputs | None:
    """Return the arguments with which a training step first calls the network.

    Args:
        trainer: Trainer of the module.
        pl_module: Module that is trained.
        network: Network within the module, or the module itself.
        batch: Training batch.

    Returns:
        The arguments; ``None`` if the step returns no loss, fails before the training has started,
        or does not call the network with a tensor.
    """
    try:
        loss = _Capture(trainer, pl_module, network)
        with evaluating(pl_module), torch.no_grad(), loss.scoring():
            loss.compute(network, batch, index=0, like=next(network.parameters()), temperature=1)
        return None if loss.arguments is None else from_arguments(*loss.arguments)
    # The step may need what only a training prepares, and its batch is an example nonetheless.
    except Exception:
        return None


class _Capture(ModuleLoss):
    """Loss of a training step that stores the first arguments of the network."""

    arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def evaluate(self, network: nn.Module, batch: Any, index: int) -> Any:
        def store(_: nn.Module, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self.arguments = self.arguments or (positional, keywords)

        with self._scored.register_forward_pre_hook(store, with_kwargs=True):
            return super().evaluate(network, batch, index)


def check_step(pl_module: LightningModule) -> None:
    """Raise an error unless ``training_step()`` of a module returns the loss of one batch.

    Args:
        pl_module: Module that is trained.

    Raises:
        ValueError: If the module has no ``training_step()``, optimises manually, or reads the
            batches itself.
    """
    kind = type(pl_module).__name__
    if not is_overridden("training_step", pl_module):
        problem = f"{kind} has no training_step()"
    elif not pl_module.automatic_optimization:
        problem = f"training_step() of {kind} optimises manually and returns no loss to score by"
    elif is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
        problem = f"training_step() of {kind} reads the batches itself, by dataloader_iter"
    else:
        return
    raise ValueError(
        f"{problem}; give PruneAtInit loss_fn=, a function of (module, batch) that returns the mean"
        " loss that the pruned network should be scored by"
    )


@contextmanager
def _without_logging(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Ignore what a module logs, by its methods and to its loggers."""
    loggers = trainer.loggers
    held = {name: vars(pl_module)[name] for name in _LOGGING if name in vars(pl_module)}
    trainer.loggers = [DummyLogger() for _ in loggers]
    vars(pl_module).update(dict.fromkeys(_LOGGING, _ignore))
    try:
        yield
    finally:
        for name in _LOGGING:
            del vars(pl_module)[name]
        vars(pl_module).update(held)
        trainer.loggers = loggers


_LOGGING = ("log", "log_dict")


def _ignore(*_: Any, **__: Any) -> None:
    pass


@contextmanager
def _single_process(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Let a module run as in a training with one process.

    The other ranks wait while rank 0 prunes. Collective operations of the Trainer return what they
    are given, and those of ``torch.distributed`` find no process group, instead of waiting.
    """
    connector, group = trainer._accelerator_connector, GroupMember.WORLD
    strategy = connector.strategy
    if group is None and trainer.world_size == 1:
        yield
        return
    alone = SingleDeviceStrategy(
        strategy.root_device, strategy.accelerator, precision_plugin=strategy.precision_plugin
    )
    alone.connect(pl_module)
    alone.optimizers = strategy.optimizers
    connector.strategy, GroupMember.WORLD = alone, None
    try:
        yield
    finally:
        connector.strategy, GroupMember.WORLD = strategy, group
