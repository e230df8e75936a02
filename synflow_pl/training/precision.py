"""Score weights in float32 or better, even if they are trained in half precision.

Under ``bf16-true`` and ``16-true`` Lightning rounds every weight before a fit starts. Rounded
weights have other scores, with additional ties, so the masks would depend on the precision of the
training. The weights are therefore copied before they are rounded, and the copy is scored.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from pytorch_lightning.plugins.precision import HalfPrecision
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from synflow_pl.graph.network_copy import duplicate

__all__ = ["scorable", "unrounded"]

_HALF = (torch.float16, torch.bfloat16)


def unrounded(trainer: Trainer, network: nn.Module) -> dict[str, Tensor]:
    """Return copies of the tensors that a Trainer will round to half precision.

    Args:
        trainer: Trainer that is about to train.
        network: Network whose parameters and buffers are copied.

    Returns:
        Copies of parameters and buffers, by name; empty if the Trainer does not round them.
    """
    if not isinstance(trainer.precision_plugin, HalfPrecision):
        return {}
    tensors = (*network.named_parameters(), *network.named_buffers())
    return {
        name: x.detach().clone()
        for name, x in tensors
        if x.is_floating_point() and x.dtype not in _HALF
    }


@torch.no_grad()
def scorable(network: nn.Module, unrounded: Mapping[str, Tensor]) -> nn.Module:
    """Return a network with the weights of ``network`` that is suitable for scoring.

    That is the network itself if its weights are float32 or better and it has no SyncBatchNorm;
    else a copy in float32, with BatchNorm in place of SyncBatchNorm.

    Args:
        network: Network that is about to be pruned.
        unrounded: Tensors of the network before they were rounded, by name. A tensor whose rounded
            value is no longer the network's (since it was trained or initialised) is not used.
    """
    rounded = any(parameter.dtype in _HALF for parameter in network.parameters())
    if not rounded and not any(
        isinstance(module, nn.SyncBatchNorm) for module in network.modules()
    ):
        return network
    clone: nn.Module = TorchSyncBatchNorm().revert(duplicate(network))
    if rounded:
        clone.float()
    present = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    tensors = {**dict(clone.named_parameters()), **dict(clone.named_buffers())}
    stale = []
    for name, before in unrounded.items():
        if name not in present or before.shape != present[name].shape:
            stale.append(name)
        elif torch.equal(before.to(present[name]), present[name]):
            tensors[name].copy_(before)
        else:
            stale.append(name)
    if stale:
        rank_zero_warn(
            "Pruning: scores rounded weights, since these changed after they were copied in full:"
            f" {', '.join(stale)}"
        )
    return clone
