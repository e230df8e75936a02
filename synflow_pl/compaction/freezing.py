"""Masks that hold biases, gains and shifts of units at zero if the input cannot reach the unit.

The bias of such a unit, or the shift of the normalisation after it, would be trained, and the unit
would become a constant. A constant that is read through padding cannot be folded into a bias, so
the unit could not be removed. If these parameters stay zero, the unit is removed, and with it all
units that read such units alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from synflow_pl.compaction.constant_propagation import interpret, unknown
from synflow_pl.flow import trace
from synflow_pl.graph import operators
from synflow_pl.graph.trace import Operation, Value
from synflow_pl.masks import Masks

__all__ = ["freeze"]


def freeze(network: nn.Module, masks: Masks, inputs: tuple[Tensor, ...]) -> Masks:
    """Add masks of biases, gains and shifts that are False for units the input cannot reach.

    The added masks are for the biases of linear and convolution layers and the gains and shifts of
    BatchNorms. No mask is added if the forward pass may take another branch on other values of its
    input.

    Args:
        network: The network under study; it is not changed.
        masks: Masks of the network.
        inputs: Inputs as :func:`synflow_pl.flow.example_of` returns them.

    Returns:
        The masks, in which the added ones are listed as followers.

    Example:
        >>> import torch
        >>> from synflow_pl import Masks
        >>> from synflow_pl.compaction import freeze
        >>> network = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 1))
        >>> masks = Masks({"0.weight": torch.tensor([[True], [False]])})
        >>> freeze(network, masks, (torch.ones(1, 1),))["0.bias"]
        tensor([ True, False])
    """
    recording = trace(network, inputs)
    names = recording.parameters
    trained = {name for name, _ in network.named_parameters()}
    norms = [
        module for module in network.modules() if isinstance(module, nn.modules.batchnorm._NormBase)
    ]
    layers = [
        module
        for module in network.modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    ]
    added = {id(module.bias) for module in (*norms, *layers) if module.bias is not None}
    means = {id(module.running_mean) for module in norms}
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    replacements = {
        value.number: unknown(recording.tensors[value.number]) for value in recording.inputs
    }
    for number, name in names.items():
        tensor = tensors[name].detach()
        # With biases and means of zero, a unit is NaN exactly where the input reaches it.
        if id(tensors[name]) in added | means:
            replacements[number] = torch.zeros_like(tensor)
        elif name in trained:
            replacements[number] = unknown(tensor)
        if name in masks:
            replacements[number] = replacements[number].masked_fill(
                ~masks[name].to(tensor.device), 0
            )
    reached: dict[str, Tensor] = {}

    def record(values: list[Value], signal: Tensor) -> None:
        reachable = signal.isnan().transpose(0, 1).flatten(1).any(1)
        for value in values:
            if (name := names.get(value.number)) in trained and name is not None:
                reached[name] = reached.get(name, torch.zeros_like(reachable)) | reachable

    def before(_: int, operation: Operation, tensor: Callable[[Value], Tensor]) -> None:
        if operation.name in operators.BATCH_NORMS:
            record(
                [value for value in operation.args[1:3] if isinstance(value, Value)],
                tensor(operation.args[0]),
            )

    def after(operation: Operation, output: Tensor) -> None:
        if operation.name == "convolution" and operation.args[2] is not None:
            record([operation.args[2]], output)
        elif operation.name == "addmm":
            record([operation.args[0]], output)

    if interpret(recording, replacements, before, after):
        return masks
    held = {
        name: reachable
        for name, reachable in reached.items()
        if not reachable.all() and name not in masks
    }
    both = {name: masks[name] & reached[name] for name in masks.followers if name in reached}
    return Masks({**masks, **held, **both}, [*masks.followers, *held])
