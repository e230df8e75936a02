"""Finding: what a pruner needs, in a LightningModule and a data module that have never heard of
it.
"""

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

# From a data module that has no pruning_batches(): as many training images as SNIP's paper scores
# CIFAR-10 on, to the end of a batch.
_IMAGES = 128


def find_network(pl_module: LightningModule, name: str | None) -> tuple[nn.Module, str]:
    """The network and the prefix of its parameters' names within the module.

    Args:
        pl_module: any LightningModule.
        name: of an attribute, such as "backbone" or "model.encoder"; by default ``network`` if
            there is one, else all of the module.

    Raises:
        ValueError: if no submodule has that name.
    """
    if name is None:
        name = "network" if isinstance(getattr(pl_module, "network", None), nn.Module) else ""
    if not name:
        return pl_module, ""
    try:
        found = attrgetter(name)(pl_module)
        if isinstance(
            getattr(found, "_orig_mod", None), nn.Module
        ):  # what torch.compile(network) returns is a module around it
            name, found = f"{name}._orig_mod", found._orig_mod
    except AttributeError:
        found = None
    if not isinstance(found, nn.Module):
        children = ", ".join(child for child, _ in pl_module.named_children())
        raise ValueError(
            f"network: {type(pl_module).__name__} has no submodule {name!r}; its children are {children}"
        )
    return found, f"{name}."


def find_example(
    trainer: Trainer, pl_module: LightningModule, shape: Sequence[int] | None
) -> tuple[Tensor, ...]:
    """An example of the network's inputs: of the shape given, else of the data module's, else
    ``example_input_array``, else one image of a training batch.

    Raises:
        ValueError: if ``example_input_array`` is not made of tensors.
    """
    device = pl_module.device
    shape = shape or getattr(getattr(trainer, "datamodule", None), "input_shape", None)
    if shape is not None:
        return (torch.ones(1, *shape, device=device),)
    example = pl_module.example_input_array
    if example is None:
        # One batch, as the training would see it, without moving any random state on.
        with isolate_rng():
            batch = next(iter(trainer.fit_loop._data_source.dataloader()))
        example = batch
        while not isinstance(example, Tensor):
            example = next(iter(example.values() if isinstance(example, dict) else example))
        example = example[:1]
    inputs = example if isinstance(example, tuple) else (example,)
    if not all(isinstance(tensor, Tensor) for tensor in inputs):
        raise ValueError(
            "example_input_array must be a tensor or a tuple of tensors; or give PruneAtInit an input_shape"
        )
    return tuple(tensor.to(device) for tensor in inputs)


def find_batches(trainer: Trainer, pruner: Pruner) -> list[tuple[Tensor, Tensor]]:
    """(images, labels) pairs to score on: what the data module gives for it, else the first batches
    of a training epoch.

    Raises:
        ValueError: if its batches are something else.
    """
    given = _given(trainer)
    return list(given()) if given is not None else FreshBatches(trainer, pruner)(0)


class FreshBatches:
    """(images, labels) pairs to score on, others in each round: a function of the round's index,
    from 0.

    They are further draws of the data module's ``pruning_batches(draw=...)``, else consecutive
    batches of training epochs. The same seed and index give the same batches, and the random state
    of training does not move. Index 0 gives those of :func:`find_batches`.

    Args:
        trainer: gives the data module, else the training batches.
        pruner: the pruner that scores on them, for messages.

    Raises:
        ValueError: if ``pruning_batches()`` has no parameter ``draw``, or a training batch is not a
            pair of tensors.
    """

    def __init__(self, trainer: Trainer, pruner: Pruner) -> None:
        self._trainer, self._pruner = trainer, pruner
        self._given = _given(trainer)
        self._batches: Iterator[list[tuple[Tensor, Tensor]]] = iter(())
        self._drawn = 0
        self._random: dict[str, Any] | None = None
        """The random states after the last draw."""

    def __call__(self, index: int) -> list[tuple[Tensor, Tensor]]:
        if self._given is not None:
            if not _accepts_draw(self._given):
                raise ValueError(
                    "fresh_batches: pruning_batches() of the data module has no parameter draw, so it has no other images for the next"
                    " round; add draw, the number of the sample from 0, or set fresh_batches to false"
                )
            return list(self._given(draw=index))
        with isolate_rng():
            if self._random is None or index < self._drawn:
                self._batches, self._drawn = self._training_batches(), 0
            else:
                _set_rng_states(self._random)
            while self._drawn <= index:
                batches = next(self._batches)
                self._drawn += 1
            self._random = _collect_rng_states()
        return batches

    def _training_batches(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Lists of training batches with 128 images or more, epoch after epoch; fewer only if an
        epoch has no more.
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
                        f"{type(self._pruner).__name__} scores on (images, labels) pairs of tensors, and a training batch is a"
                        f" {type(batch).__name__} of something else; give the data module a method pruning_batches() that lists them"
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


def _given(trainer: Trainer) -> Callable[..., Iterable[tuple[Tensor, Tensor]]] | None:
    given = getattr(getattr(trainer, "datamodule", None), "pruning_batches", None)
    return given if callable(given) else None
