"""Stateless forward passes of data with working copies of a network's weights.

The loss L of every data-driven score is the mean over all pruning images. Batches are processed one
at a time, each weighted by its number of images, so that a short last batch is not overweighted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from synflow_pl.flow import evaluating
from synflow_pl.graph.control import Controlled
from synflow_pl.pruners.base import PruningState

__all__ = [
    "Forward",
    "batch_statistics",
    "gradients_of",
    "loss_gradients",
    "mean_losses",
    "stateless_forward",
]

Forward = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""Function from weights by name and images (N, C, H, W) to logits (N, num_classes)."""


@contextmanager
def stateless_forward(state: PruningState, *, train_mode: bool = False) -> Iterator[Forward]:
    """Return a function that runs ``state.network`` with other weights and leaves it unchanged.

    Weights, buffers, gradients, mode and random state of the network are restored on exit.

    Args:
        state: State of the pruning. Parameters without a given value keep the network's own.
        train_mode: Whether to run in train mode: BatchNorm uses the statistics of each batch and
            dropout is active; running statistics are not updated.

    Raises:
        TypeError: If the network does not return a tensor; raised by the forward pass.
    """
    network = state.network
    like = next(iter(state.weights.values()))
    tensors = {
        name: _cast(tensor, like)
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
    }

    def forward(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        # A forward pass may write to buffers, even in eval mode, so it receives copies.
        buffers = {name: tensors[name].clone() for name, _ in network.named_buffers()}
        logits = functional_call(network, {**tensors, **buffers, **weights}, (_cast(images, like),))
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"{type(network).__name__} returns a {type(logits).__name__}, but pruning by data"
                " needs one tensor, the logits: wrap the network in a module that returns them, and"
                " prune that"
            )
        return logits

    devices = [like.device] if like.device.type == "cuda" else []
    with torch.random.fork_rng(devices), evaluating(network), torch.enable_grad(), Controlled():
        if train_mode:
            network.train()
        yield forward


def mean_losses(
    state: PruningState, forward: Forward, weights: Mapping[str, Tensor], temperature: float = 1.0
) -> Iterator[Tensor]:
    """Yield the loss of each batch, weighted so that the sum is the mean over all pruning images.

    Args:
        state: State of the pruning, whose batches and loss are used.
        forward: Function from :func:`stateless_forward`.
        weights: Weights by parameter name.
        temperature: Positive number by which logits are divided.
    """
    total = sum(len(images) for images, _ in state.batches)
    for images, labels in state.batches:
        logits = forward(weights, images)
        yield state.loss(logits / temperature, labels.to(logits.device)) * (len(images) / total)


def loss_gradients(
    state: PruningState, forward: Forward, weights: Mapping[str, Tensor], temperature: float = 1.0
) -> dict[str, Tensor]:
    """Return the gradients dL/dw of the mean loss over all pruning images, by parameter name.

    A gradient is zero for a weight on which the loss does not depend.

    Args:
        state: State of the pruning, whose batches and loss are used.
        forward: Function from :func:`stateless_forward`.
        weights: Weights by parameter name.
        temperature: Positive number by which logits are divided.
    """
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for loss in mean_losses(state, forward, leaves, temperature):
        for name, gradient in zip(leaves, gradients_of(loss, leaves), strict=True):
            sums[name] += gradient
    return sums


def gradients_of(
    value: Tensor, leaves: Mapping[str, Tensor], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Return the gradient of ``value`` at each leaf; it is zero for a leaf that is not connected.

    Args:
        value: Scalar to differentiate.
        leaves: Leaf tensors by name.
        create_graph: Whether the gradients can be differentiated again.
    """
    return torch.autograd.grad(
        value, list(leaves.values()), create_graph=create_graph, materialize_grads=True
    )


@torch.no_grad()
def batch_statistics(
    state: PruningState, forward: Forward, weights: Mapping[str, Tensor], images: Tensor
) -> dict[str, Tensor]:
    """Return the running statistics that BatchNorm would have after these images alone.

    Args:
        state: State of the pruning, whose network is used.
        forward: Function from :func:`stateless_forward`.
        weights: Weights by parameter name.
        images: Images (N, C, H, W).

    Returns:
        Buffers of the normalisation layers, by name.
    """
    norms = {
        name: module
        for name, module in state.network.named_modules()
        if isinstance(module, _NormBase)
    }
    buffers = {
        f"{name}.{key}": buffer.clone()
        for name, module in norms.items()
        for key, buffer in module.named_buffers()
    }
    momenta = {name: module.momentum for name, module in norms.items()}
    try:
        for module in norms.values():
            module.training, module.momentum = True, 1.0
        forward({**weights, **buffers}, images)
    finally:
        for name, module in norms.items():
            module.training, module.momentum = False, momenta[name]
    return buffers


def _cast(tensor: Tensor, like: Tensor) -> Tensor:
    """Move a tensor to the device of ``like``, and a floating-point tensor to its dtype."""
    return tensor.detach().to(
        like.device, like.dtype if tensor.is_floating_point() else tensor.dtype
    )
