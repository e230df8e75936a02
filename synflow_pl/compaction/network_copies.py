"""Copies of networks and of their tensors that a computation may change."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synflow_pl.graph.network_copy import duplicate
from synflow_pl.masks import Masks

__all__ = ["masked_copy", "masked_tensors"]


def masked_copy(network: nn.Module, masks: Masks) -> nn.Module:
    """Return a copy of the network with pruned weights at zero."""
    whole = duplicate(network)
    masks.apply(whole)
    return whole


def masked_tensors(network: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Return parameters and buffers in double precision, with pruned weights at zero, by name.

    Args:
        network: Network that the tensors are copied from.
        masks: Masks of the network.
    """
    named = (*network.named_parameters(), *network.named_buffers())
    tensors = {
        name: tensor.detach().to(
            torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True
        )
        for name, tensor in named
    }
    for name, mask in masks.items():
        tensors[name].masked_fill_(~mask.to(tensors[name].device), 0)
    return tensors
