"""Precision: weights are scored in float32 or better, also where they are trained in less.

Under ``bf16-true`` and ``16-true`` Lightning rounds every weight before a fit starts. Scores of
rounded weights are other scores, with ties where there were none, and the masks would depend on the
precision. So the weights are copied before they are rounded, and the copy is scored.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from pytorch_lightning.plugins.precision import HalfPrecision
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

__all__ = ["scorable", "unrounded"]

_HALF = (torch.float16, torch.bfloat16)


def unrounded(trainer: Trainer, network: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters and buffers that ``trainer`` is about to round to half precision, by
    name; none if it rounds nothing.
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
    """The network itself if it can be scored as it stands, else a copy that can: in float32, its
    BatchNorm asking no other rank.

    Args:
        network: about to be pruned.
        unrounded: what its tensors were before they were rounded, by name. One that is not what a
            tensor was rounded from (it has been trained or initialised since) does not count.
    """
    rounded = any(parameter.dtype in _HALF for parameter in network.parameters())
    if not rounded and not any(
        isinstance(module, nn.SyncBatchNorm) for module in network.modules()
    ):
        return network
    twin: nn.Module = TorchSyncBatchNorm().revert(copy.deepcopy(network))
    if rounded:
        twin.float()
    present = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    tensors = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
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
            f"Pruning: scores rounded weights, since these changed after they were copied in full: {', '.join(stale)}"
        )
    return twin
