"""Train a compacted network whose ``state_dict()`` keeps the shapes of the full network."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning_fabric.utilities.optimizer import _optimizers_to_device
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from synflow_pl.compaction import Compaction, resize
from synflow_pl.masks import Masks

__all__ = ["Compacted", "check_compactable", "rebuild"]


def check_compactable(trainer: Trainer, pl_module: LightningModule, network: nn.Module) -> None:
    """Refuse a module or a callback that cannot work with a compacted network.

    Args:
        trainer: Trainer whose callbacks are checked.
        pl_module: Module that is trained.
        network: Network of the module that would be compacted.

    Raises:
        ValueError: If the network is the module itself, or a callback keeps a full-size copy.
    """
    if network is pl_module:
        raise ValueError(
            f"compact: {type(pl_module).__name__} is its own network; let it have the network as an"
            " attribute, and name that as network"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # the trainer's connectors set it
        if isinstance(callback, WeightAveraging):
            raise ValueError(
                f"compact: {type(callback).__name__} has copied the network in full size; leave one"
                " of the two out"
            )


class Compacted:
    """Compact a network in place until :meth:`restore` is called.

    Its ``state_dict()`` keeps the full shapes: tensors are expanded when they are saved and sliced
    when they are loaded. The entries that were removed keep the values that they had before.

    Args:
        network: Pruned network, whose layers are resized in place.
        masks: Masks of the network, by parameter name.
        inputs: Inputs of the network, as :func:`synflow_pl.flow.example_of` returns them.

    Attributes:
        masks: Masks of the compacted network.
        summary: Table of the units that were removed, as text.
    """

    def __init__(self, network: nn.Module, masks: Masks, inputs: tuple[Tensor, ...]) -> None:
        compaction = Compaction(network, masks, inputs, training=True)
        self.masks, self.summary = compaction.masks, compaction.table()
        self._network, self._kept = network, compaction.kept
        self._full = {name: tensor.detach().cpu() for name, tensor in _tensors(network).items()}
        # All names of a tensor that several modules share refer to one entry.
        owners = {id(tensor): name for name, tensor in _tensors(network).items()}
        present = (
            *network.named_parameters(remove_duplicate=False),
            *network.named_buffers(remove_duplicate=False),
        )
        self._names = {name: owners[id(tensor)] for name, tensor in present}
        self._attributes = {
            name: {attribute: getattr(network.get_submodule(name), attribute) for attribute in new}
            for name, new in compaction.attributes.items()
        }
        resize(network, _tensors(compaction.network), compaction.attributes)
        self._handles: list[Any] = [
            network.register_state_dict_post_hook(partial(self._saved)),
            network.register_load_state_dict_pre_hook(self._loaded),
        ]

    def restore(self) -> None:
        """Expand the network to its full shapes, with the trained weights."""
        for handle in self._handles:
            handle.remove()
        resize(
            self._network,
            {name: self._expand(name, tensor) for name, tensor in _tensors(self._network).items()},
            self._attributes,
        )

    def _saved(self, module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for name, owner in self._names.items():
            if prefix + name in state:
                state[prefix + name] = self._expand(owner, state[prefix + name])

    def _loaded(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name, owner in self._names.items():
            tensor = state.get(prefix + name)
            if isinstance(tensor, Tensor) and tensor.shape == self._full[owner].shape:
                for dim, indices in enumerate(self._kept.get(owner, ())):
                    tensor = tensor.index_select(dim, indices.to(tensor.device))
                state[prefix + name] = tensor

    def _expand(self, name: str, tensor: Tensor) -> Tensor:
        if not tensor.dim():
            return tensor
        full = self._full[name].to(tensor.device, tensor.dtype, copy=True)
        full[
            torch.meshgrid(
                *(indices.to(tensor.device) for indices in self._kept[name]), indexing="ij"
            )
        ] = tensor.detach()
        return full


def rebuild(trainer: Trainer, pl_module: LightningModule) -> None:
    """Create the optimisers, schedules and DDP wrapper again.

    After compaction, the existing ones refer to parameters that the network no longer has.

    Args:
        trainer: Trainer whose strategy is set up again.
        pl_module: Module that is trained.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        strategy.model = pl_module
        strategy.configure_ddp()
    strategy.setup_optimizers(trainer)
    strategy.setup_precision_plugin()
    _optimizers_to_device(strategy.optimizers, strategy.root_device)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
