"""Finding: what a pruner needs, in a LightningModule and a data module that have never heard of it."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from synflow_pl.pruners import Pruner
from synflow_pl.training.losses import find_loss

__all__ = ["find_batches", "find_example", "find_loss", "find_network"]

# From a data module that has no pruning_batches(): as many training images as SNIP's paper scores CIFAR-10 on, to the end of a batch.
_IMAGES = 128


def find_network(pl_module: LightningModule, name: str | None) -> tuple[nn.Module, str]:
    """The network and the prefix of its parameters' names within the module.

    Args:
        pl_module: any LightningModule.
        name: of an attribute, such as "backbone" or "model.encoder"; by default ``network`` if there is one, else all of the module.

    Raises:
        ValueError: if no submodule has that name.
    """
    if name is None:
        name = "network" if isinstance(getattr(pl_module, "network", None), nn.Module) else ""
    if not name:
        return pl_module, ""
    try:
        found = attrgetter(name)(pl_module)
        if isinstance(getattr(found, "_orig_mod", None), nn.Module):  # what torch.compile(network) returns is a module around it
            name, found = f"{name}._orig_mod", found._orig_mod
    except AttributeError:
        found = None
    if not isinstance(found, nn.Module):
        children = ", ".join(child for child, _ in pl_module.named_children())
        raise ValueError(f"network: {type(pl_module).__name__} has no submodule {name!r}; its children are {children}")
    return found, f"{name}."


def find_example(trainer: Trainer, pl_module: LightningModule, shape: Sequence[int] | None) -> tuple[Tensor, ...]:
    """An example of the network's inputs: of the shape given, else of the data module's, else ``example_input_array``, else one image
    of a training batch.

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
        raise ValueError("example_input_array must be a tensor or a tuple of tensors; or give PruneAtInit an input_shape")
    return tuple(tensor.to(device) for tensor in inputs)


def find_batches(trainer: Trainer, pruner: Pruner) -> list[tuple[Tensor, Tensor]]:
    """(images, labels) pairs to score on: what the data module gives for it, else the first batches of a training epoch.

    Raises:
        ValueError: if its batches are something else.
    """
    given = getattr(getattr(trainer, "datamodule", None), "pruning_batches", None)
    if callable(given):
        return list(given())
    batches: list[tuple[Tensor, Tensor]] = []
    with isolate_rng():
        for batch in trainer.fit_loop._data_source.dataloader():
            pair = isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
            if not pair:
                raise ValueError(
                    f"{type(pruner).__name__} scores on (images, labels) pairs of tensors, and a training batch is a"
                    f" {type(batch).__name__} of something else; give the data module a method pruning_batches() that lists them"
                )
            batches.append((batch[0], batch[1]))
            if sum(len(images) for images, _ in batches) >= _IMAGES:
                break
    return batches
