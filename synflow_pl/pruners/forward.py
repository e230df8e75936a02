"""Stateless forward passes of data with working copies of a network's weights.

The loss L of every data-driven score is the mean over all examples. Batches are processed one at a
time, each weighted by its number of examples, so that a short last batch is not overweighted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._pytree import tree_map_only

from synflow_pl.flow import evaluating
from synflow_pl.graph.control import Controlled
from synflow_pl.graph.example_inputs import Inputs, from_arguments
from synflow_pl.pruners.base import PruningState
from synflow_pl.pruners.batches import cast

__all__ = [
    "Forward",
    "batch_statistics",
    "gradients_of",
    "loss_gradients",
    "mean_batch_statistics",
    "network_inputs",
    "nonempty",
    "scored_losses",
    "stateless_forward",
]

Forward = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""Function from weights by name and images (N, C, H, W) to logits (N, num_classes)."""


@contextmanager
def stateless_forward(state: PruningState) -> Iterator[Forward]:
    """Return a function that runs ``state.network`` with other weights and leaves it unchanged.

    Weights, buffers, gradients, mode and random state of the network are restored on exit.

    Args:
        state: State of the pruning. Parameters without a given value keep the network's own.

    Raises:
        TypeError: If the network does not return a tensor; raised by the forward pass.
    """
    network = state.network
    like = next(iter(state.weights.values()))
    tensors = {name: cast(tensor, like) for name, tensor in _tensors(network)}

    def forward(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        # A forward pass may write to buffers, even in eval mode, so it receives copies.
        buffers = {name: tensors[name].clone() for name, _ in network.named_buffers()}
        logits = functional_call(network, {**tensors, **buffers, **weights}, (cast(images, like),))
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"{type(network).__name__} returns a {type(logits).__name__}, but pruning by data"
                " needs one tensor, the logits: wrap the network in a module that returns them, and"
                " prune that"
            )
        return logits

    with _stateless(network, like, train_mode=False):
        yield forward


@contextmanager
def scored_losses(
    state: PruningState,
    weights: Mapping[str, Tensor],
    temperature: float = 1.0,
    indices: Sequence[int] | None = None,
) -> Iterator[Callable[[], Iterator[Tensor]]]:
    """Return a function that yields the loss of each batch, as a function of ``weights``.

    Inside the context the network runs with ``weights``, so gradients must be computed there: a
    network may run parts of its forward pass again for them. The losses are weighted so that their
    sum is the mean over all examples. Weights, buffers, gradients, mode and random state of the
    network are restored on exit.

    Args:
        state: State of the pruning, whose batches, loss and mode are used.
        weights: Weights by parameter name, and buffers by name; all others keep the network's own
            values.
        temperature: Positive number by which the network's outputs are divided.
        indices: Indices of the batches; ``None`` takes all.
    """
    network, loss = state.network, state.loss
    owner, scored = loss.modules(network)
    like = next(iter(state.weights.values()))
    # The network may be a copy, in higher precision, of the module that the loss runs.
    present = dict(_tensors(scored, remove_duplicate=False))
    substitutes = {id(present[name]): cast(value, like) for name, value in _tensors(network)}
    substitutes |= {id(present[name]): weight for name, weight in weights.items()}
    tensors = {
        name: substitutes[id(x)] if id(x) in substitutes else cast(x, like)
        for name, x in _tensors(owner)
    }
    buffers = {name: tensors[name] for name, _ in owner.named_buffers()}
    chosen = range(len(state.batches)) if indices is None else indices
    sizes = [loss.size(state.batches[index]) for index in chosen]

    def losses() -> Iterator[Tensor]:
        for index, size in zip(chosen, sizes, strict=True):
            batch = state.batches[index]
            # A forward pass may write to buffers, even in eval mode, so it receives copies.
            copies = {name: buffer.clone() for name, buffer in buffers.items()}
            with _reparametrize_module(owner, copies, tie_weights=True):
                value = loss.compute(
                    network, batch, index=index, like=like, temperature=temperature
                )
            yield value * (size / sum(sizes))

    with (
        _stateless(owner, like, train_mode=state.train_mode),
        loss.scoring(),
        _reparametrize_module(owner, tensors, tie_weights=True),
    ):
        yield losses


@contextmanager
def _stateless(module: nn.Module, like: Tensor, *, train_mode: bool) -> Iterator[None]:
    """Restore mode and random state of a module on exit, and run control flow as plain Python."""
    devices = [like.device] if like.device.type == "cuda" else []
    with torch.random.fork_rng(devices), evaluating(module), torch.enable_grad(), Controlled():
        if train_mode:
            module.train()
        yield


def loss_gradients(state: PruningState, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients dL/dw of the mean loss over all examples, by parameter name.

    A gradient is zero for a weight on which the loss does not depend.

    Args:
        state: State of the pruning, whose batches, loss and mode are used.
        weights: Weights by parameter name.
    """
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with scored_losses(state, leaves) as losses:
        for loss in losses():
            for name, gradient in zip(leaves, gradients_of(loss, leaves), strict=True):
                sums[name] += gradient
    return sums


def gradients_of(
    value: Tensor,
    leaves: Mapping[str, Tensor],
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> tuple[Tensor, ...]:
    """Return the gradient of ``value`` at each leaf; it is zero for a leaf that is not connected.

    Args:
        value: Scalar to differentiate.
        leaves: Leaf tensors by name.
        create_graph: Whether the gradients can be differentiated again.
        retain_graph: Whether ``value`` can be; ``None`` follows ``create_graph``.
    """
    if not value.requires_grad:  # no leaf is connected
        return tuple(torch.zeros_like(leaf) for leaf in leaves.values())
    return torch.autograd.grad(
        value,
        list(leaves.values()),
        retain_graph=retain_graph,
        create_graph=create_graph,
        materialize_grads=True,
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


@torch.no_grad()
def mean_batch_statistics(state: PruningState, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the means over the batches of the statistics by which BatchNorm would normalise.

    Args:
        state: State of the pruning, whose batches and loss are used. All modules but the
            normalisations run in eval mode.
        weights: Weights by parameter name.

    Returns:
        Running means and variances of the normalisation layers by the names of their buffers, each
        batch weighted by its number of examples. Empty if no normalisation has any.
    """
    _, scored = state.loss.modules(state.network)
    norms = {
        module: name
        for name, module in scored.named_modules()
        if isinstance(module, _NormBase) and module.track_running_stats
    }
    sums: dict[str, Tensor] = {}
    counts: dict[str, float] = {}

    def add(module: nn.Module, *_: Any) -> None:
        if isinstance(module, _NormBase) and module in norms:
            for key in ("running_mean", "running_var"):
                name = f"{norms[module]}.{key}"
                sums[name] = sums.get(name, 0.0) + size * module.get_buffer(key)
                counts[name] = counts.get(name, 0.0) + size

    indices = nonempty(state) if norms else []
    with scored_losses(state, weights, indices=indices) as losses, ExitStack() as stack:
        for module in norms:
            stack.callback(setattr, module, "momentum", module.momentum)
            # The mode is restored with that of the network.
            module.training, module.momentum = True, 1.0
        # A hook of the module itself, and what it writes to, would be restored after each batch.
        stack.enter_context(register_module_forward_hook(add))
        batches = losses()
        for index in indices:
            size = float(state.loss.size(state.batches[index]))
            next(batches)
    return {name: total / counts[name] for name, total in sums.items()}


def network_inputs(state: PruningState) -> list[Inputs]:
    """Return the inputs on which the loss of each batch runs the network, at its first call.

    Args:
        state: State of the pruning, whose batches and loss are used.

    Raises:
        ValueError: If the loss of a batch does not call the network.
    """
    _, scored = state.loss.modules(state.network)
    calls: list[Inputs] = []
    open_call: list[tuple[Any, ...]] = []

    def before(module: nn.Module, positional: tuple[Any, ...]) -> None:
        if module is scored and not open_call:
            # The network may write to its inputs.
            open_call.append(tree_map_only(Tensor, torch.clone, positional))

    def after(module: nn.Module, _: Any, keywords: dict[str, Any], __: Any) -> None:
        if module is scored and len(calls) == count:
            calls.append(from_arguments(open_call[0], keywords))

    indices = nonempty(state)
    with (
        torch.no_grad(),
        scored_losses(state, {}, indices=indices) as losses,
        register_module_forward_pre_hook(before),
        register_module_forward_hook(after, with_kwargs=True),
    ):
        batches = losses()
        for count in range(len(indices)):
            open_call.clear()
            next(batches)
            if len(calls) == count:
                raise ValueError(
                    f"the loss of a batch does not call {type(scored).__name__} itself, so its"
                    " inputs are not known; prune the module that is called"
                )
    return [inputs.replaced(tensor.detach() for tensor in inputs) for inputs in calls]


def nonempty(state: PruningState) -> list[int]:
    """Return the indices of the batches that have examples.

    Args:
        state: State of the pruning.
    """
    return [index for index, batch in enumerate(state.batches) if state.loss.size(batch)]


def _tensors(module: nn.Module, *, remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and value of each parameter and buffer."""
    yield from module.named_parameters(remove_duplicate=remove_duplicate)
    yield from module.named_buffers(remove_duplicate=remove_duplicate)
