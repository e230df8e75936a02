"""Losses: the loss by which a data-driven pruner scores, read off a LightningModule without
guessing.
"""

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
"""Attributes of a LightningModule that a loss is looked for under."""

BROADCAST = r"Using a target size .* that is different to the input size"
"""Torch's warning where a loss broadcasts labels against outputs of another shape."""


def find_loss(pl_module: LightningModule, network: nn.Module | None = None) -> Loss:
    """Return the module's own loss: a module or function of (outputs, labels), which is one of its
    attributes.

    Args:
        pl_module: Any LightningModule; its attributes ``loss``, ``criterion``, ``loss_fn`` and
            ``loss_function`` are looked at.
        network: Network that is pruned. A method of ``pl_module`` must not run it, since it would
            then take inputs, not outputs.

    Raises:
        ValueError: if no attribute is such a loss, or two of them are different ones.
    """
    names = [name for name in LOSSES if _is_loss(getattr(pl_module, name, None))]
    found: list[Any] = [getattr(pl_module, name) for name in names]
    kind = type(pl_module).__name__
    ask = "give PruneAtInit loss=, a function of (outputs, labels) that returns the mean loss (loss=torch.nn.CrossEntropyLoss())"
    if not found:
        present = [name for name in LOSSES if getattr(pl_module, name, None) is not None]
        unfit = (
            f"{', '.join(present)} of {kind} is no"
            if present
            else f"{kind} has no attribute {', '.join(LOSSES)} that is a"
        )
        raise ValueError(
            f"{unfit} loss of two arguments and one number, so the pruner has no loss to score by; {ask}"
        )
    if any(other != found[0] for other in found[1:]):
        raise ValueError(
            f"{kind} has several losses, {', '.join(names)}, and the pruner scores by one; {ask}"
        )
    loss: Loss = found[0]
    return (
        MethodLoss(loss, network, names[0], ask)
        if inspect.ismethod(loss) and loss.__self__ is pl_module
        else loss
    )


def takes_two(function: Any) -> bool:
    """Return whether a function can be called with two positional arguments and with nothing
    else.
    """
    try:
        inspect.signature(function.forward if isinstance(function, nn.Module) else function).bind(
            None, None
        )
    except (TypeError, ValueError):  # other arguments, or none that can be read off it
        return False
    return True


def _is_loss(value: Any) -> bool:
    if not callable(value) or isinstance(value, (type, Metric, MetricCollection)):
        return False
    return getattr(value, "reduction", "mean") != "none" and takes_two(value)


class MethodLoss:
    """A loss that is a method of the LightningModule, called with the network's outputs and the
    labels.

    A method ``loss(self, images, labels)`` has two arguments as well. It runs the network, and is
    refused when it does.

    Args:
        method: Method of the module.
        network: Network that is pruned.
        name: Name of the method.
        ask: What to do instead, as the end of a sentence.

    Raises:
        ValueError: when it is called, if it runs the network or cannot be computed from outputs and
            labels.
    """

    def __init__(self, method: Loss, network: nn.Module | None, name: str, ask: str) -> None:
        self.method, self.network = method, network
        self._message = f"{name}() of {type(method.__self__).__name__} is no loss of the network's outputs and labels"  # type: ignore[attr-defined]
        self._ask = ask

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        def refuse(*_: Any) -> None:
            raise ValueError(f"{self._message}, since it runs the network; {self._ask}")

        owner = self.method.__self__  # type: ignore[attr-defined]
        modules = [owner] if owner is self.network else [owner, self.network]
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
                f"{self._message}, since it returns a {type(value).__name__}, not one number; {self._ask}"
            )
        return value
