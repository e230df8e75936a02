"""Tracing: records the computation of a network as a flat list of tensor operations.

The network runs once, in eval mode, on one example, below autograd. It therefore makes no
difference whether an operation is called from a module, `torch.nn.functional`, a tensor method, a
custom autograd function or TorchScript: each run is a sequence of ATen operations between numbered
values. Operations that write in place are recorded as pure ones (:mod:`synflow_pl.graph.aliasing`).
The network is run on plain tensors and not changed: whatever it writes to and stores is restored.

Random numbers are replaced by their mean, so that no value depends on a seed; the values that were
computed from random numbers are recorded (:mod:`synflow_pl.graph.noise`).

`torch.fx`'s ``make_fx`` does not replace this recorder. Functionalised and with
``tracing_mode="real"`` (torch 2.14, CPU time on one thread, alternately, median of 5), it took 8.8
times as long for ResNet-18 (0.33 s, here 0.04 s) and 10.3 times for VGG-16 (0.76 s, 0.07 s), both
on 32x32 pixels, and 4.1 times for ViT-B/16 on 224x224 (1.81 s, 0.44 s). It raises an error for
branches and loops that depend on values, for ``torch.cond``, custom autograd functions without
``setup_context``, gradients inside ``forward()`` and outputs in objects other than dataclasses. It
leaves writes into buffers and attributes behind, records a wrong constant for a conversion to
NumPy, and its nodes have no module and no mean of random numbers. Writes to views, boolean indices,
TorchScript and inference mode work.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from synflow_pl.graph.control import Controlled
from synflow_pl.graph.evaluation import (
    attention_in_parts,
    evaluating,
    explaining_errors,
    recurrence_in_steps,
    restoring_parameters,
    tracking_modules,
)
from synflow_pl.graph.example_inputs import call
from synflow_pl.graph.network_state import preserve_state
from synflow_pl.graph.noise import Noise, WithoutAlphaDropout
from synflow_pl.graph.operation import Operation, Value
from synflow_pl.graph.outputs import tensors
from synflow_pl.graph.recorder import Recorder
from synflow_pl.numerics import full_precision

__all__ = ["Graph", "Operation", "Value", "is_number", "trace"]


def is_number(tensor: Tensor) -> bool:
    """Return whether a tensor can carry flow: whether it is floating-point or complex."""
    return tensor.is_floating_point() or tensor.is_complex()


@dataclass
class Graph:
    """The operations of one forward pass in the order in which they ran.

    Attributes:
        inputs: Inputs of the network.
        parameters: Names of parameters and buffers by the number of their value.
        outputs: Each tensor that the network returns, in containers and objects of any class;
            booleans and integers are converted to float32.
        operations: Operations in order of execution; each value is the output of at most one of
            them.
        tensors: Tensor of each value, by number, including constants that the network creates.
        noise: Distributions of the values that are random numbers, by number; their tensors hold
            the mean.
        decisions: Numbers of the outputs that were booleans or integers.
        opaque: Place and type of the first part of the output that cannot be searched, "" if there
            is none.
    """

    inputs: tuple[Value, ...]
    parameters: dict[int, str]
    outputs: tuple[Value, ...] = ()
    operations: list[Operation] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    noise: dict[int, Noise] = field(default_factory=dict)
    decisions: frozenset[int] = frozenset()
    opaque: str = ""


@full_precision()
def trace(
    network: nn.Module, inputs: tuple[Tensor, ...], *, fused_recurrence: bool = False
) -> Graph:
    """Run ``network`` once on ``inputs`` and return the graph of its operations.

    Args:
        network: Any module. The module, and whatever its forward pass stores tensors in, are left
            unchanged.
        inputs: Example inputs, as returned by :func:`example_of`.
        fused_recurrence: Whether a recurrent layer may be one operation; otherwise each of its
            steps is recorded as products and gates.

    Returns:
        The graph. Its tensors are those of this one pass, at the precision of the network.

    Raises:
        ValueError: If the network creates parameters in its first forward pass, or fails on
            ``inputs``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from synflow_pl.flow import trace
        >>> graph = trace(nn.Sequential(nn.Linear(2, 1), nn.ReLU()), (torch.ones(1, 2),))
        >>> [operation.name for operation in graph.operations]
        ['t', 'addmm', 'relu']
    """
    _check_created(network)
    running: list[str] = []
    recorder = Recorder(running)
    names = {id(tensor): name for name, tensor in network.named_parameters()}
    parameters = dict(network.named_parameters())
    # A fused TorchScript graph would hide its operations.
    unoptimised = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules())
    in_steps = recurrence_in_steps() if recurrent and not fused_recurrence else nullcontext()
    with (
        explaining_errors(network, inputs),
        preserve_state(network),
        evaluating(network),
        restoring_parameters(network),
    ):
        named = {
            recorder.value(tensor).number: name
            for name, tensor in (*network.named_parameters(), *network.named_buffers())
        }
        fed = tuple(recorder.value(tensor) for tensor in inputs)
        try:
            with (
                attention_in_parts(),
                in_steps,
                unoptimised,
                torch.no_grad(),
                tracking_modules(network, running),
                WithoutAlphaDropout(),
                Controlled(),
                recorder,
            ):
                numbers, decisions, opaque = tensors(call(network, inputs), type(network).__name__)
            outputs = tuple(recorder.value(leaf) for leaf in (*numbers, *decisions))
            decided = frozenset(recorder.value(leaf).number for leaf in decisions)
            created = [
                name
                for name, tensor in network.named_parameters()
                if id(tensor) not in names and name not in parameters
            ]
        finally:
            recorder.restore()
    if created:
        raise ValueError(_CREATED.format(type(network).__name__, ", ".join(created)))
    return Graph(
        fed, named, outputs, recorder.operations, recorder.tensors, recorder.noise, decided, opaque
    )


_CREATED = (
    "{} creates parameters in its first forward pass ({}), so they could not be pruned; call the"
    " network once on an example before pruning it"
)


def _check_created(network: nn.Module) -> None:
    created = [
        name for name, tensor in network.named_parameters() if torch.nn.parameter.is_lazy(tensor)
    ]
    if created:
        raise ValueError(_CREATED.format(type(network).__name__, ", ".join(created)))
