"""Evaluation: contexts in which a network runs for a trace, and the errors of its forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from synflow_pl.graph.example_inputs import as_inputs
from synflow_pl.graph.network_state import preserve_state
from synflow_pl.graph.written_memory import Writes
from synflow_pl.numerics import without_onednn

__all__ = [
    "attention_in_parts",
    "evaluating",
    "explaining_errors",
    "recurrence_in_steps",
    "restoring_parameters",
    "tracking_modules",
]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network in eval mode inside the context and restore each module's mode after it.

    Example:
        >>> from torch import nn
        >>> from synflow_pl.flow import evaluating
        >>> network = nn.Dropout()
        >>> with evaluating(network):
        ...     network.training
        False
        >>> network.training
        True
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def explaining_errors(network: nn.Module, inputs: tuple[Tensor, ...]) -> Iterator[None]:
    """Turn an error of ``forward()`` on these inputs into a ValueError that names their shapes.

    An error that ``forward()`` raises only while it is traced is raised unchanged.
    """
    try:
        yield
    except Exception as error:
        written = Writes()
        try:
            with preserve_state(network), evaluating(network), torch.no_grad():
                copies = {
                    name: tensor.clone()
                    for name, tensor in (*network.named_parameters(), *network.named_buffers())
                }
                try:
                    with written:
                        functional_call(network, copies, *as_inputs(inputs).arguments())
                finally:
                    written.restore()
        except torch.OutOfMemoryError:
            raise
        except Exception as cause:
            shapes = ", ".join(
                f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
                for tensor in inputs
            )
            reason = str(cause).strip().partition("\n")[0].rstrip(".")
            raise ValueError(
                f"{type(network).__name__} fails on an input of {shapes} ({type(cause).__name__}:"
                f" {reason}); correct input_shape, or give the example_input that forward() takes"
                " (whole numbers for words)"
            ) from cause
        raise error


@contextmanager
def attention_in_parts() -> Iterator[None]:
    """Disable the fused transformer encoder layer of eval mode, which hides its projections."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def recurrence_in_steps() -> Iterator[None]:
    """Disable fused recurrent layers, which hide their products, in favour of single steps."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.enabled
    cudnn.enabled = False
    try:
        with without_onednn():
            yield
    finally:
        cudnn.enabled = before


@contextmanager
def tracking_modules(network: nn.Module, running: list[str]) -> Iterator[None]:
    """Keep the names of the running modules in a list, the innermost last."""
    names = {id(module): name for name, module in network.named_modules()}

    def enter(module: nn.Module, _: Any) -> None:
        # A module that is not registered in the network runs as a part of its caller.
        running.append(names.get(id(module), running[-1] if running else ""))

    def leave(module: nn.Module, *_: Any) -> None:
        running.pop()

    handles = (
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def restoring_parameters(network: nn.Module) -> Iterator[None]:
    """Disable gradients of parameters inside, and restore parameters and buffers after it.

    Both their memory and their values are restored.
    """
    held = [(tensor, tensor.detach()) for tensor in (*network.parameters(), *network.buffers())]
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    trained = [
        parameter
        for parameter in network.parameters()
        if parameter.requires_grad and parameter.is_leaf
    ]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for tensor, before in held:
            if tensor.data_ptr() != before.data_ptr() or tensor.shape != before.shape:
                tensor.data = before
        for buffer, before in buffers:
            # BatchNorm kernels write to the running statistics without declaring it in their
            # schema.
            if not torch.equal(torch.nan_to_num(buffer), torch.nan_to_num(before)):
                buffer.detach().copy_(before)
        for parameter in trained:
            parameter.requires_grad_(True)
