"""Norm of gradients that are sharded over the ranks, each by its own mesh, and clipping by it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

from synflow_pl.training.sharded_masks import local, num_shards

__all__ = ["clip_over_all_ranks", "total_norm"]


def clip_over_all_ranks(trainer: Trainer) -> None:
    """Let a Trainer clip gradients by their norm over all ranks.

    torch's function does so only if all gradients are sharded by the same mesh. With tensor
    parallelism some parameters are whole or sharded by another mesh.

    Args:
        trainer: Trainer whose precision plugin is changed.
    """
    plugin = trainer.precision_plugin
    plugin.clip_grad_by_norm = partial(_clip, plugin)  # type: ignore[method-assign]


def _clip(plugin: Any, optimizer: Optimizer, clip_val: float) -> None:
    gradients = [p.grad for p in plugin.main_params(optimizer) if p.grad is not None]
    if gradients:
        # As in torch.nn.utils.clip_grad_norm_.
        factor = (clip_val / (total_norm(gradients) + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            shard = local(gradient)
            shard.mul_(factor.to(shard))


@torch.no_grad()
def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of all gradients together, over all ranks; a collective call.

    Args:
        gradients: Gradients, at least one: DTensors, or tensors that are equal on all ranks.

    Returns:
        Float32 scalar, or float64 if the first gradient is.
    """
    dtype = torch.promote_types(gradients[0].dtype, torch.float32)
    squares = [
        torch.linalg.vector_norm(local(whole), dtype=dtype).square() * num_shards(whole)
        for whole in map(_summed, gradients)
    ]
    total = torch.stack(squares).sum()
    # The squares of a shard are added once for each rank that holds it.
    distributed.all_reduce(total)
    return (total / distributed.get_world_size()).sqrt()


def _summed(gradient: Tensor) -> Tensor:
    """Return a gradient whose sum over the ranks is not pending."""
    if not isinstance(gradient, DTensor) or not any(p.is_partial() for p in gradient.placements):
        return gradient
    placements = [Replicate() if p.is_partial() else p for p in gradient.placements]
    return gradient.redistribute(placements=placements)
