"""Passes of data through a network while it is being pruned: logits from working copies of its
weights, and nothing left behind.

The loss of every data-driven score is L, the mean over all pruning images. Batches are taken one at
a time, and each counts by its images, so that a short last batch weighs as much as it holds.
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
"""Weights (and buffers) by name and images (N, C, H, W) to logits (N, num_classes)."""


@contextmanager
def stateless_forward(subject: PruningState, *, train_mode: bool = False) -> Iterator[Forward]:
    """A way to run ``subject.network`` on other weights. Weights, buffers, gradients, mode and
    random state stay as they were.

    Args:
        subject: of which the pass uses the network alone; weights not given are the network's own.
        train_mode: BatchNorm normalises by each batch's own statistics, dropout drops; running
            statistics do not move.

    Raises:
        TypeError: If the network returns anything but a tensor; raised by the pass.
    """
    network = subject.network
    kind = next(iter(subject.weights.values()))
    state = {
        name: _cast(tensor, kind)
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
    }

    def forward(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        # In train mode, and sometimes in eval mode, a pass writes to its buffers: it gets copies.
        buffers = {name: state[name].clone() for name, _ in network.named_buffers()}
        logits = functional_call(network, {**state, **buffers, **weights}, (_cast(images, kind),))
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"{type(network).__name__} returns a {type(logits).__name__}, but pruning by data needs one tensor, the logits: wrap"
                " the network in a module that returns them, and prune that"
            )
        return logits

    devices = [kind.device] if kind.device.type == "cuda" else []
    with torch.random.fork_rng(devices), evaluating(network), torch.enable_grad(), Controlled():
        if train_mode:
            network.train()
        yield forward


def mean_losses(
    subject: PruningState, forward: Forward, weights: Mapping[str, Tensor], temperature: float = 1.0
) -> Iterator[Tensor]:
    """For each batch its share of L, so that their sum is the mean loss over all pruning images.

    Args:
        subject: gives batches and loss.
        forward: as :func:`stateless_forward` gives it.
        weights: by parameter name.
        temperature: logits are divided by it, positive.
    """
    total = sum(len(images) for images, _ in subject.batches)
    for images, labels in subject.batches:
        logits = forward(weights, images)
        yield subject.loss(logits / temperature, labels.to(logits.device)) * (len(images) / total)


def loss_gradients(
    subject: PruningState, forward: Forward, weights: Mapping[str, Tensor], temperature: float = 1.0
) -> dict[str, Tensor]:
    """dL/dw, in the weights' shapes; zero for a weight that the loss does not depend on. Arguments
    as :func:`mean_losses`.
    """
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for loss in mean_losses(subject, forward, leaves, temperature):
        for name, gradient in zip(leaves, gradients_of(loss, leaves), strict=True):
            sums[name] += gradient
    return sums


def gradients_of(
    value: Tensor, leaves: Mapping[str, Tensor], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """The gradient of ``value`` at each leaf, zero where there is no connection."""
    return torch.autograd.grad(
        value, list(leaves.values()), create_graph=create_graph, materialize_grads=True
    )


@torch.no_grad()
def batch_statistics(
    subject: PruningState, forward: Forward, weights: Mapping[str, Tensor], images: Tensor
) -> dict[str, Tensor]:
    """Buffers by name: the running statistics that BatchNorm would have if ``images`` were all it
    had ever seen.
    """
    norms = {
        name: module
        for name, module in subject.network.named_modules()
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


def _cast(tensor: Tensor, kind: Tensor) -> Tensor:
    """On the device of the working copies, and in their precision unless it is a whole number."""
    return tensor.detach().to(
        kind.device, kind.dtype if tensor.is_floating_point() else tensor.dtype
    )
