"""Copies of networks that a computation may change."""

from __future__ import annotations

from torch import nn

from synflow_pl.graph.network_copy import duplicate
from synflow_pl.masks import Masks

__all__ = ["masked_copy"]


def masked_copy(network: nn.Module, masks: Masks) -> nn.Module:
    """Return a copy of the network with pruned weights at zero."""
    whole = duplicate(network)
    masks.apply(whole)
    return whole
