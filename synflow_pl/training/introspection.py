"""Find the network, example input, batches and loss that a pruner needs, in any LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from inspect import signature
from operator import attrgetter
from typing import Any

import torch
from lightning_fabric.utilities.seed import _collect_rng_states, _set_rng_states
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from synflow_pl.pruners import Pruner
from synflow_pl.training.losses import find_loss

__all__ = ["FreshBatches", "find_batches", "find_example", "find_loss", "find_network"]

# Number of training images to score on, rounded up to whole batches, if the data module has no
# pruning_batches(): the number that SNIP's paper uses for CIFAR-10.
_IMAGES = 128


def find_network(pl_module: LightningModule, name: str | None) -> tuple[nn.Module, str]:
    """Return the network to prune and the prefix of its parameters' names within the module.

    Args:
        pl_module: Any LightningModule.
        name: Name of an attribute, such as "backbone" or "model.encoder"; by default ``network``
            if there is such an attribute, else the whole module.

    Raises:
        ValueError: If no submodule has that name.
    """
    if name is None:
        name = "network" if isinstance(getattr(pl_module, "network", None), nn.Module) else ""
    if not name:
        return pl_module, ""
    try:
        network = attrgetter(name)(pl_module)
        # torch.compile(network) returns a module that wraps the network.
        if isinstance(getattr(network, "_orig_mod", None), nn.Module):
            name, network = f"{name}._orig_mod", network._orig_mod
    except AttributeError:
        network = None
    if not isinstance(network, nn.Module):
        children = ", ".join(child for child, _ in pl_module.named_children())
        raise ValueError(
            f"network: {type(pl_module).__name__} has no submodule {name!r}; its children are"
            f" {children}"
        )
    return network, f"{name}."


def find_example(
    trainer: Trainer, pl_module: LightningModule, shape: Sequence[int] | None
) -> tuple[Tensor, ...]:
    """Return an example of the network's inputs.

    It has the given shape, else the data module's ``input_shape``; else it is the module's
    ``example_input_array``, else the first image of a training batch.

    Args:
        trainer: Trainer with the data module or the training batches.
        pl_module: Module that is trained.
        shape: Shape of an input without the batch dimension, such as (C, H, W), or ``None``.

    Raises:
        ValueError: If ``example_input_array`` is neither a tensor nor a tuple of tensors.
    """
    device = pl_module.device
    shape = shape or getattr(getattr(trainer, "datamodule", None), "input_shape", None)
    if shape is not None:
        return (torch.ones(1, *shape, device=device),)
    example = pl_module.example_input_array
    if example is None:
        # Reading a training batch must not change the random state of the training.
        with isolate_rng():
            batch = next(iter(trainer.fit_loop._data_source.dataloader()))
        example = batch
        while not isinstance(example, Tensor):
            example = next(iter(example.values() if isinstance(example, dict) else example))
        example = example[:1]
    inputs = example if isinstance(example, tuple) else (example,)
    if not all(isinstance(tensor, Tensor) for tensor in inputs):
        raise ValueError(
            "example_input_array must be a tensor or a tuple of tensors; or give PruneAtInit an"
            " input_shape"
        )
    return tuple(tensor.to(device) for tensor in inputs)


def find_batches(trainer: Trainer, pruner: Pruner) -> list[tuple[Tensor, Tensor]]:
    """Return the (images, labels) pairs to score on.

    They are the data module's ``pruning_batches()`` if it has that method, else the first training
    batches.

    Args:
        trainer: Trainer with the data module or the training batches.
        pruner: Pruner that scores on the batches, for messages.

    Raises:
        ValueError: If a training batch is not a pair of tensors.
    """
    function = _pruning_batches(trainer)
    return list(function()) if function is not None else FreshBatches(trainer, pruner)(0)


class FreshBatches:
    """Function from the index of a round, from 0, to the (images, labels) pairs to score on.

    Each round has other images: another draw of the data module's ``pruning_batches(draw=...)`` if
    it has that method, else the next batches of training epochs. The batches depend on seed and
    index only, and the random state of the training does not change. Index 0 gives the batches of
    :func:`find_batches`.

    Args:
        trainer: Trainer with the data module or the training batches.
        pruner: Pruner that scores on the batches, for messages.

    Raises:
        ValueError: If ``pruning_batches()`` has no parameter ``draw``, or a training batch is not a
            pair of tensors.
    """

    def __init__(self, trainer: Trainer, pruner: Pruner) -> None:
        self._trainer, self._pruner = trainer, pruner
        self._function = _pruning_batches(trainer)
        self._batches: Iterator[list[tuple[Tensor, Tensor]]] = iter(())
        self._drawn = 0
        self._random_states: dict[str, Any] | None = None
        """Random states after the last draw."""

    def __call__(self, index: int) -> list[tuple[Tensor, Tensor]]:
        """Return the pairs of the round with this index."""
        if self._function is not None:
            if not _accepts_draw(self._function):
                raise ValueError(
                    "fresh_batches: pruning_batches() of the data module has no parameter draw, so"
                    " it has no other images for the next round; add draw, the number of the sample"
                    " from 0, or set fresh_batches to false"
                )
            return list(self._function(draw=index))
        with isolate_rng():
            if self._random_states is None or index < self._drawn:
                self._batches, self._drawn = self._training_batches(), 0
            else:
                _set_rng_states(self._random_states)
            while self._drawn <= index:
                batches = next(self._batches)
                self._drawn += 1
            self._random_states = _collect_rng_states()
        return batches

    def _training_batches(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Yield lists of training batches with at least 128 images, epoch after epoch.

        A list has fewer images only if the whole epoch has.
        """
        while True:
            batches: list[tuple[Tensor, Tensor]] = []
            whole = False
            for batch in self._trainer.fit_loop._data_source.dataloader():
                pair = (
                    isinstance(batch, (tuple, list))
                    and len(batch) == 2
                    and all(isinstance(part, Tensor) for part in batch)
                )
                if not pair:
                    raise ValueError(
                        f"{type(self._pruner).__name__} scores on (images, labels) pairs of"
                        f" tensors, and a training batch is a {type(batch).__name__} of something"
                        " else; give the data module a method pruning_batches() that lists them"
                    )
                batches.append((batch[0], batch[1]))
                if sum(len(images) for images, _ in batches) >= _IMAGES:
                    yield batches
                    batches, whole = [], True
            if not whole:
                yield batches


def _accepts_draw(function: Callable[..., Any]) -> bool:
    parameters = signature(function).parameters.values()
    return any(
        parameter.name == "draw" or parameter.kind is parameter.VAR_KEYWORD
        for parameter in parameters
    )


def _pruning_batches(trainer: Trainer) -> Callable[..., Iterable[tuple[Tensor, Tensor]]] | None:
    function = getattr(getattr(trainer, "datamodule", None), "pruning_batches", None)
    return function if callable(function) else None
