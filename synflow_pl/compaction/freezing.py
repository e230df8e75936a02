"""Freezing: what a unit without a living path from the input would add on its own is held at zero.

Its bias, or the shift of the normalisation behind it, would train, and a constant that is read
through padding can never be taken out. Held at zero from the start it says nothing, and goes with
everything that reads it alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from synflow_pl.compaction.channel_groups import BATCH_NORMS
from synflow_pl.compaction.constant_propagation import interpret, unknown
from synflow_pl.flow import trace
from synflow_pl.graph.trace import Operation, Value
from synflow_pl.masks import Masks

__all__ = ["freeze"]


def freeze(network: nn.Module, masks: Masks, inputs: tuple[Tensor, ...]) -> Masks:
    """The masks, and with them as followers the biases of linear and convolution layers and the
    gains and shifts of BatchNorms: living where the input can reach their unit.

    Nothing is held if the forward pass may take another branch on other values of its input.

    Args:
        network: the network under study; left as it is.
        masks: its masks.
        inputs: as :func:`synflow_pl.flow.example_of` gives them.
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
    given = {value.number: unknown(recording.tensors[value.number]) for value in recording.inputs}
    for number, name in names.items():
        tensor = tensors[name].detach()
        if (
            id(tensors[name]) in added | means
        ):  # as if all were held that may be: where the input comes, it shows all the same
            given[number] = torch.zeros_like(tensor)
        elif name in trained:
            given[number] = unknown(tensor)
        if name in masks:
            given[number] = given[number].masked_fill(~masks[name].to(tensor.device), 0)
    reached: dict[str, Tensor] = {}

    def note(values: list[Value], made: Tensor) -> None:
        alive = made.isnan().transpose(0, 1).flatten(1).any(1)
        for value in values:
            if (name := names.get(value.number)) in trained and name is not None:
                reached[name] = reached.get(name, torch.zeros_like(alive)) | alive

    def before(_: int, operation: Operation, tensor: Callable[[Value], Tensor]) -> None:
        if operation.name in BATCH_NORMS:
            note(
                [value for value in operation.args[1:3] if isinstance(value, Value)],
                tensor(operation.args[0]),
            )

    def after(operation: Operation, made: Tensor) -> None:
        if operation.name == "convolution" and operation.args[2] is not None:
            note([operation.args[2]], made)
        elif operation.name == "addmm":
            note([operation.args[0]], made)

    if interpret(recording, given, before, after):
        return masks  # on other values the input may take another way
    held = {name: alive for name, alive in reached.items() if not alive.all() and name not in masks}
    both = {name: masks[name] & reached[name] for name in masks.followers if name in reached}
    return Masks({**masks, **held, **both}, [*masks.followers, *held])
