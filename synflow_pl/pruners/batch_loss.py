"""Losses of a batch, by which data-driven pruners compute their scores.

A pruner evaluates a loss with working copies of the weights in place of the network's own. A loss
of (outputs, labels) only needs the network. A loss of (network, batch) runs a user's code, which
may draw random numbers, count steps or update an average; everything that it changes is restored.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from synflow_pl.graph.network_state import preserve_state, seed
from synflow_pl.graph.written_memory import Writes
from synflow_pl.pruners.batches import batch_size, cast, move_batch

__all__ = ["BatchLoss", "FunctionLoss", "PairLoss", "as_batch_loss", "is_binary"]


class BatchLoss(ABC):
    """Base class of losses of a network on one batch."""

    def modules(self, network: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Return the module whose code computes the loss, and the module in it that is scored.

        Args:
            network: Network that is scored, which may be a copy of the latter.
        """
        return network, network

    def example(self, batches: Sequence[Any]) -> Tensor | None:
        """Return one input of the network, with its batch dimension, if the batches contain it.

        Args:
            batches: Batches of one round, which :meth:`check` accepts.
        """
        return None

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Prepare for calls of :meth:`compute`, and restore everything on exit."""
        yield

    @abstractmethod
    def check(self, pruner: str, batches: object) -> None:
        """Raise an error unless a loss of each batch can be computed.

        Args:
            pruner: Name of the pruner, for messages.
            batches: Batches of one round.

        Raises:
            ValueError: If there are none, or one has another structure than the loss needs.
        """

    @abstractmethod
    def size(self, batch: Any) -> int:
        """Return the number of examples of a batch, by which its loss is weighted."""

    @abstractmethod
    def compute(
        self, network: nn.Module, batch: Any, *, index: int, like: Tensor, temperature: float
    ) -> Tensor:
        """Return the loss of one batch, a scalar.

        Args:
            network: Network that is scored, with the weights that are scored.
            batch: Batch.
            index: Index of the batch, counted from 0.
            like: Tensor whose device and dtype the batch is moved to.
            temperature: Positive number by which the outputs of the network are divided.
        """


class PairLoss(BatchLoss):
    """Loss of the outputs of a network and the labels of a batch, a pair (images, labels).

    Args:
        function: Function from (outputs, labels) to the mean loss of a batch.

    Example:
        >>> import torch
        >>> loss = PairLoss(nn.functional.cross_entropy)
        >>> loss.size((torch.ones(6, 8), torch.ones(6)))
        6
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def check(self, pruner: str, batches: object) -> None:
        expected = f"{pruner} scores on data: give batches=, a list of (images, labels) pairs"
        for index, batch in enumerate(_listed(expected, batches)):
            if not _is_pair(batch):
                raise ValueError(
                    f"{expected}; batches[{index}] is no pair of tensors (for batches of another"
                    " structure, loss= is a function of network and batch)"
                )
            if len(batch[0]) != len(batch[1]):
                raise ValueError(
                    f"{expected}; batches[{index}] has {len(batch[0])} images and {len(batch[1])}"
                    " labels"
                )
        if not any(len(images) for images, _ in batches):  # type: ignore[attr-defined]
            raise ValueError(f"{expected}; there are no images in these")

    def example(self, batches: Sequence[Any]) -> Tensor | None:
        return next(images for images, _ in batches if len(images))[:1]

    def size(self, batch: Any) -> int:
        return len(batch[0])

    def compute(
        self, network: nn.Module, batch: Any, *, index: int, like: Tensor, temperature: float
    ) -> Tensor:
        images, labels = batch
        outputs = network(cast(images, like))
        if not isinstance(outputs, Tensor):
            raise TypeError(
                f"{type(network).__name__} returns a {type(outputs).__name__}, but a loss of"
                " (outputs, labels) needs one tensor: give loss= as a function of network and"
                " batch (loss=lambda network, batch: ...)"
            )
        return self.function(outputs / temperature, labels.to(outputs.device))


class FunctionLoss(BatchLoss):
    """Loss that a function computes from the network and a batch of any structure.

    What the function changes is restored after each call: attributes, buffers, metrics and other
    tensors, random state. Random numbers depend on the index of the batch only.

    Args:
        function: Function from (network, batch) to the mean loss of a batch, a scalar.

    Example:
        >>> import torch
        >>> loss = FunctionLoss(lambda network, batch: network(batch["x"]).square().mean())
        >>> loss.size({"x": torch.ones(6, 8)})
        6
    """

    name = "loss="
    """Name of the function in messages."""

    def __init__(self, function: Callable[[Any, Any], Tensor]) -> None:
        self.function = function
        self._written = Writes()

    def check(self, pruner: str, batches: object) -> None:
        expected = f"{pruner} scores on data: give batches=, a list of batches"
        if not any(self.size(batch) for batch in _listed(expected, batches)):
            raise ValueError(f"{expected}; there are no examples in these")

    def size(self, batch: Any) -> int:
        return batch_size(batch)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._written.restore()

    def compute(
        self, network: nn.Module, batch: Any, *, index: int, like: Tensor, temperature: float
    ) -> Tensor:
        owner, scored = self.modules(network)
        # Not restored when the call ends: gradients may still need what was written.
        self._written.restore()
        with (
            preserve_state(owner),
            _divided_outputs(scored, temperature) as divisions,
            self._written,
        ):
            seed(index)
            loss = self.evaluate(network, move_batch(batch, like), index)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shown = (
                f"a tensor of shape {tuple(loss.shape)}"
                if isinstance(loss, Tensor)
                else f"a {type(loss).__name__}"
            )
            raise ValueError(f"{self.name} returned {shown} for batch {index}, not one number")
        if temperature != 1 and not divisions:
            raise ValueError(
                f"{self.name} does not call {type(scored).__name__} itself, so its"
                f" outputs cannot be divided by the temperature {temperature:g}; set temperature=1,"
                " or prune the module that is called"
            )
        return loss.reshape(())

    def evaluate(self, network: nn.Module, batch: Any, index: int) -> Any:
        """Return what the function computes for a batch.

        Args:
            network: Network that is scored.
            batch: Batch on the device and in the precision of the scored weights.
            index: Index of the batch, counted from 0.
        """
        return self.function(network, batch)


def as_batch_loss(loss: BatchLoss | Callable[[Any, Any], Tensor]) -> BatchLoss:
    """Return a loss of a batch, for a function of (outputs, labels) or (network, batch).

    A function whose second parameter is called ``batch`` takes the network and a batch of any
    structure. Every other one takes the network's outputs and the labels.

    Args:
        loss: Function or loss.

    Raises:
        TypeError: If it cannot be called with two arguments.

    Example:
        >>> type(as_batch_loss(lambda network, batch: network(batch).mean())).__name__
        'FunctionLoss'
        >>> type(as_batch_loss(nn.MSELoss())).__name__
        'PairLoss'
    """
    if isinstance(loss, BatchLoss):
        return loss
    if not is_binary(loss):
        raise TypeError(
            f"loss: {loss!r} must be a module or function of two arguments, (outputs, labels) or"
            " (network, batch), to the mean loss"
        )
    return FunctionLoss(loss) if _parameters(loss)[1:2] == ["batch"] else PairLoss(loss)


def is_binary(function: Any) -> bool:
    """Return whether a function or module can be called with exactly two positional arguments."""
    if isinstance(function, type) or not callable(function):
        return False
    try:
        _signature(function).bind(None, None)
    # A TypeError means other arguments, a ValueError that there is no signature to inspect.
    except (TypeError, ValueError):
        return False
    return True


def _signature(function: Any) -> inspect.Signature:
    return inspect.signature(function.forward if isinstance(function, nn.Module) else function)


def _parameters(function: Any) -> list[str]:
    """Return the names of the positional parameters of a function or module."""
    return [
        parameter.name
        for parameter in _signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]


def _listed(expected: str, batches: object) -> Sequence[Any]:
    """Return the batches, or raise an error if they are no sequence or there are none."""
    if not isinstance(batches, Sequence) or len(batches) == 0:
        given = "none" if isinstance(batches, Sequence) else f"a {type(batches).__name__}"
        raise ValueError(f"{expected}; got {given}")
    return batches


def _is_pair(batch: object) -> bool:
    return (
        isinstance(batch, (tuple, list))
        and len(batch) == 2
        and all(isinstance(part, Tensor) and part.dim() for part in batch)
    )


@contextmanager
def _divided_outputs(network: nn.Module, temperature: float) -> Iterator[list[None]]:
    """Divide the outputs of a module by a temperature, and list one item for each call."""
    calls: list[None] = []

    def divide(_: nn.Module, __: Any, outputs: Any) -> Any:
        calls.append(None)
        return apply_to_collection(
            outputs, Tensor, lambda x: x / temperature if x.is_floating_point() else x
        )

    handle = network.register_forward_hook(divide) if temperature != 1 else None
    try:
        yield calls
    finally:
        if handle is not None:
            handle.remove()
