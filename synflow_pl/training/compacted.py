"""Compacted: a network that is small while it trains and full-size to everyone who asks for its
weights.
"""

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
    """Refuse what cannot train in another size.

    Raises:
        ValueError: naming it.
    """
    if network is pl_module:
        raise ValueError(
            f"compact: {type(pl_module).__name__} is its own network; let it have the network as an attribute, and name that as network"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # the trainer's connectors set it
        if isinstance(callback, WeightAveraging):
            raise ValueError(
                f"compact: {type(callback).__name__} has copied the network in full size; leave one of the two out"
            )


class Compacted:
    """Makes a network smaller in place, for as long as it trains.

    Its ``state_dict()`` stays what it was: tensors are expanded as they are saved, and cut as they
    are loaded. What was taken out keeps the values that it had.

    Args:
        network: pruned; its layers get other sizes.
        masks: of the network.
        inputs: as :func:`synflow_pl.flow.example_of` gives them.

    Attributes:
        masks: of what is left.
        told: what was taken out, as text.
    """

    def __init__(self, network: nn.Module, masks: Masks, inputs: tuple[Tensor, ...]) -> None:
        compaction = Compaction(network, masks, inputs, training=True)
        self.masks, self.told = compaction.masks, compaction.table()
        self._network, self._kept = network, compaction.kept
        self._full = {name: tensor.detach().cpu() for name, tensor in _tensors(network).items()}
        # A tensor that several modules own has one entry for all of its names.
        owners = {id(tensor): name for name, tensor in _tensors(network).items()}
        present = (
            *network.named_parameters(remove_duplicate=False),
            *network.named_buffers(remove_duplicate=False),
        )
        self._names = {name: owners[id(tensor)] for name, tensor in present}
        resize(network, _tensors(compaction.network))
        self._handles: list[Any] = [
            network.register_state_dict_post_hook(partial(self._saved)),
            network.register_load_state_dict_pre_hook(self._loaded),
        ]

    def restore(self) -> None:
        """Full size again, with the trained weights."""
        for handle in self._handles:
            handle.remove()
        resize(
            self._network,
            {name: self._expand(name, tensor) for name, tensor in _tensors(self._network).items()},
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
    """Make optimisers, schedules and the DDP wrapper anew: those that there are hold parameters
    that are no longer the network's.
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
