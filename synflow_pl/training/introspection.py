"""Find the network, example input and batches that a pruner needs, in any LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from inspect import signature
from operator import attrgetter
from typing import Any

import torch
from lightning_fabric.utilities.seed import _collect_rng_states, _set_rng_states
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from synflow_pl.graph.example_inputs import as_inputs
from synflow_pl.pruners.batches import batch_size, tensors_in
from synflow_pl.training.module_loss import captured_inputs

__all__ = ["FreshBatches", "find_batches", "find_example", "find_network"]

# Number of training examples to score on, rounded up to whole batches, if the data module has no
# pruning_batches(): the number that SNIP's paper uses for CIFAR-10.
_EXAMPLES = 128


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
    trainer: Trainer, pl_module: LightningModule, network: nn.Module, shape: Sequence[int] | None
) -> tuple[Tensor, ...]:
    """Return an example of the network's inputs.

    It has the given shape, else the data module's ``input_shape``; else it is the module's
    ``example_input_array``, else what ``training_step()`` gives the network for one example from a
    training batch. Where that cannot be found out, it is the first tensor of the batch.

    Args:
        trainer: Trainer with the data module or the training batches.
        pl_module: Module that is trained.
        network: Network that is pruned, the module or a part of it.
        shape: Shape of an input without the batch dimension, such as (C, H, W), or ``None``.

    Raises:
        ValueError: If neither ``example_input_array`` nor a training batch has a tensor.
    """
    device = pl_module.device
    shape = shape or getattr(getattr(trainer, "datamodule", None), "input_shape", None)
    if shape is not None:
        return (torch.ones(1, *shape, device=device),)
    example = pl_module.example_input_array
    if example is None:
        with isolate_rng():  # reading a training batch must not change the state of the training
            batch = next(_training_batches(trainer, pl_module))
            inputs = captured_inputs(trainer, pl_module, network, batch)
        inputs = inputs or as_inputs(_first_tensor(batch))
        sizes = {len(tensor) if tensor.dim() else 0 for tensor in inputs}
        if sizes == {batch_size(batch)}:
            inputs = inputs.replaced(tensor[:1] for tensor in inputs)
        return inputs
    inputs = as_inputs(example)
    return inputs.replaced(tensor.to(device) for tensor in inputs)


def find_batches(trainer: Trainer, pl_module: LightningModule) -> list[Any]:
    """Return the batches to score on.

    They are the data module's ``pruning_batches()`` if it has that method, else the first training
    batches, as ``training_step()`` receives them.

    Args:
        trainer: Trainer with the data module or the training batches.
        pl_module: Module that is trained.
    """
    function = _pruning_batches(trainer)
    return list(function()) if function is not None else FreshBatches(trainer, pl_module)(0)


class FreshBatches:
    """Function from the index of a round, from 0, to the batches to score on.

    Each round has other examples: another draw of the data module's ``pruning_batches(draw=...)``
    if it has that method, else the next batches of training epochs. The batches depend on seed and
    index only, and the random state of the training does not change. Index 0 gives the batches of
    :func:`find_batches`.

    Args:
        trainer: Trainer with the data module or the training batches.
        pl_module: Module that is trained.

    Raises:
        ValueError: If ``pruning_batches()`` has no parameter ``draw``.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer, self._pl_module = trainer, pl_module
        self._function = _pruning_batches(trainer)
        self._batches: Iterator[list[Any]] = iter(())
        self._drawn = 0
        self._random_states: dict[str, Any] | None = None
        """Random states after the last draw."""

    def __call__(self, index: int) -> list[Any]:
        """Return the batches of the round with this index."""
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
                self._batches, self._drawn = self._lists(), 0
            else:
                _set_rng_states(self._random_states)
            while self._drawn <= index:
                batches = next(self._batches)
                self._drawn += 1
            self._random_states = _collect_rng_states()
        return batches

    def _lists(self) -> Iterator[list[Any]]:
        """Yield lists of training batches with at least 128 examples, epoch after epoch.

        A list has fewer examples only if the whole epoch has.
        """
        while True:
            batches: list[Any] = []
            whole = False
            for batch in _training_batches(self._trainer, self._pl_module):
                batches.append(batch)
                if sum(map(batch_size, batches)) >= _EXAMPLES:
                    yield batches
                    batches, whole = [], True
            if not whole:
                yield batches


def _training_batches(trainer: Trainer, pl_module: LightningModule) -> Iterator[Any]:
    """Yield the batches of one training epoch, as ``training_step()`` receives them.

    Raises:
        ValueError: If there are none.
    """
    loader = trainer.fit_loop._data_source.dataloader()
    if not isinstance(loader, CombinedLoader):
        loader = CombinedLoader(loader, "max_size_cycle")
    empty = True
    for batch, _, _ in loader:
        empty = False
        batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
        yield pl_module._apply_batch_transfer_handler(
            batch, device=pl_module.device, dataloader_idx=0
        )
    if empty:
        raise ValueError("the training data has no batches to prune by")


def _first_tensor(batch: Any) -> Tensor:
    """Return the first tensor of a batch.

    Raises:
        ValueError: If the batch has none.
    """
    first = next(tensors_in(batch), None)
    if first is None:
        raise ValueError(
            f"a training batch, a {type(batch).__name__}, has no tensor to serve as an example of"
            " the network's inputs; give PruneAtInit an input_shape, or the module an"
            " example_input_array"
        )
    return first


def _accepts_draw(function: Callable[..., Any]) -> bool:
    parameters = signature(function).parameters.values()
    return any(
        parameter.name == "draw" or parameter.kind is parameter.VAR_KEYWORD
        for parameter in parameters
    )


def _pruning_batches(trainer: Trainer) -> Callable[..., Iterable[Any]] | None:
    function = getattr(getattr(trainer, "datamodule", None), "pruning_batches", None)
    return function if callable(function) else None
