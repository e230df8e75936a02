"""Trace a network, and refuse a forward pass that compaction cannot follow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synflow_pl.compaction.agreement import first_line
from synflow_pl.compaction.branches import Conversions
from synflow_pl.flow import trace
from synflow_pl.graph.network_copy import duplicate
from synflow_pl.graph.outputs import Opaque
from synflow_pl.graph.trace import Graph

__all__ = ["trace_for_compaction"]


def trace_for_compaction(network: nn.Module, inputs: tuple[Tensor, ...]) -> Graph:
    """Return the traced graph of a network.

    Args:
        network: The network.
        inputs: Example of each input.

    Raises:
        ValueError: If the forward pass has an operation that prevents compaction.
    """
    conversions = Conversions()
    copied = duplicate(network)  # a forward pass may set attributes
    try:
        with conversions:
            recording = trace(copied, inputs, fused_recurrence=True)
    except RuntimeError as error:
        if isinstance(error, NotImplementedError):
            raise ValueError(
                f"{type(network).__name__}.forward has an operation that cannot be recorded"
                f" ({first_line(error)})"
            ) from error
        if not conversions.called:
            raise
        raise ValueError(_converts(network, conversions)) from error
    if conversions.called:
        raise ValueError(_converts(network, conversions))
    if recording.opaque:
        raise Opaque(recording.opaque, "compaction")
    if any(tensor.is_meta for tensor in recording.tensors):
        raise ValueError(
            f"{type(network).__name__}.forward computes with tensors on the meta device"
            " (forward-mode derivatives make such), which have no values and cannot be compacted;"
            " compute without them, or leave the network whole"
        )
    if (
        other := next((x for x in recording.tensors if x.layout != torch.strided), None)
    ) is not None:
        raise ValueError(
            f"{type(network).__name__}.forward computes with tensors of layout {other.layout},"
            " which compaction cannot follow; use dense tensors, or leave the network whole"
        )
    return recording


def _converts(network: nn.Module, conversions: Conversions) -> str:
    return (
        f"{type(network).__name__}.forward reads values of tensors by {conversions.called}, so it"
        " may take another branch on other values and cannot be compacted; compute with tensors"
        " throughout, or leave the network whole"
    )
