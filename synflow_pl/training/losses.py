"""Find the loss of a LightningModule, by which a data-driven pruner computes its scores."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

__all__ = ["BROADCAST", "LOSSES", "Loss", "MethodLoss", "find_loss", "takes_two"]

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES = ("loss", "criterion", "loss_fn", "loss_function")
"""Attributes of a LightningModule that may hold its loss."""

BROADCAST = r"Using a target size .* that is different to the input size"
"""Pattern of torch's warning that a loss broadcasts labels against outputs of another shape."""


def find_loss(pl_module: LightningModule, network: nn.Module | None = None) -> Loss:
    """Return the loss of a LightningModule, a module or function of (outputs, labels).

    Args:
        pl_module: Any LightningModule; its attributes ``loss``, ``criterion``, ``loss_fn`` and
            ``loss_function`` are searched.
        network: Network that is pruned. A loss that is a method of ``pl_module`` must not run it;
            such a method takes inputs rather than outputs.

    Raises:
        ValueError: If no attribute is such a loss, or two attributes are different losses.
    """
    names = [name for name in LOSSES if _is_loss(getattr(pl_module, name, None))]
    losses: list[Any] = [getattr(pl_module, name) for name in names]
    kind = type(pl_module).__name__
    ask = (
        "give PruneAtInit loss=, a function of (outputs, labels) that returns the mean loss"
        " (loss=torch.nn.CrossEntropyLoss())"
    )
    if not losses:
        present = [name for name in LOSSES if getattr(pl_module, name, None) is not None]
        unfit = (
            f"{', '.join(present)} of {kind} is no"
            if present
            else f"{kind} has no attribute {', '.join(LOSSES)} that is a"
        )
        raise ValueError(
            f"{unfit} loss of two arguments and one number, so the pruner has no loss to score by;"
            f" {ask}"
        )
    if any(other != losses[0] for other in losses[1:]):
        raise ValueError(
            f"{kind} has several losses, {', '.join(names)}, and the pruner scores by one; {ask}"
        )
    loss: Loss = losses[0]
    return (
        MethodLoss(loss, network, names[0], ask)
        if inspect.ismethod(loss) and loss.__self__ is pl_module
        else loss
    )


def takes_two(function: Any) -> bool:
    """Return whether a function or module can be called with exactly two positional arguments."""
    try:
        inspect.signature(function.forward if isinstance(function, nn.Module) else function).bind(
            None, None
        )
    # A TypeError means other arguments, a ValueError that there is no signature to inspect.
    except (TypeError, ValueError):
        return False
    return True


def _is_loss(value: Any) -> bool:
    if not callable(value) or isinstance(value, (type, Metric, MetricCollection)):
        return False
    return getattr(value, "reduction", "mean") != "none" and takes_two(value)


class MethodLoss:
    """Loss that calls a method of the LightningModule with the network's outputs and the labels.

    A method ``loss(self, images, labels)`` has two arguments as well, but runs the network. An
    error is raised when it does.

    Args:
        method: Method of the module.
        network: Network that is pruned.
        name: Name of the method.
        ask: End of the error messages, which names the remedy.

    Raises:
        ValueError: On a call, if the method runs the network or cannot be computed from outputs and
            labels.
    """

    def __init__(self, method: Loss, network: nn.Module | None, name: str, ask: str) -> None:
        self.method, self.network = method, network
        self._owner = method.__self__  # type: ignore[attr-defined]
        self._message = (
            f"{name}() of {type(self._owner).__name__} is no loss of the network's outputs and"
            " labels"
        )
        self._ask = ask

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch, which is one number."""

        def refuse(*_: Any) -> None:
            raise ValueError(f"{self._message}, since it runs the network; {self._ask}")

        modules = [self._owner, *([self.network] if self.network is not self._owner else [])]
        handles = [
            module.register_forward_pre_hook(refuse)
            for module in modules
            if isinstance(module, nn.Module)
        ]
        try:
            value = self.method(outputs, labels)
        except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            if str(error).startswith(self._message):
                raise
            raise ValueError(
                f"{self._message} ({' '.join(str(error).split())}); {self._ask}"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(
                f"{self._message}, since it returns a {type(value).__name__}, not one number;"
                f" {self._ask}"
            )
        return value
