"""Example inputs: the tensors that a network is traced on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

__all__ = ["Inputs", "as_inputs", "call", "example_of", "from_arguments"]


def example_of(
    network: nn.Module,
    input_shape: Sequence[int] | None,
    example_input: Any,
) -> tuple[Tensor, ...]:
    """Return example inputs for tracing: ones of ``input_shape``, or ``example_input``.

    Args:
        network: Network whose first floating-point parameter gives device and precision.
        input_shape: Shape without the batch dimension, such as (C, H, W), for a network with one
            input.
        example_input: Arguments of ``forward()``, as :func:`as_inputs` takes them. It is given in
            place of ``input_shape``, and its tensors are moved to the device of the network.

    Raises:
        TypeError: If ``example_input`` is no tensor, tuple, list or dictionary.
        ValueError: If neither or both are given, a size is not positive, no parameter gives a
            precision, or ``example_input`` has no tensor.

    Example:
        >>> from torch import nn
        >>> from synflow_pl.flow import example_of
        >>> (images,) = example_of(nn.Conv2d(3, 8, 3), (3, 32, 32), None)
        >>> images.shape
        torch.Size([1, 3, 32, 32])
    """
    parameter = next(
        (parameter for parameter in network.parameters() if parameter.is_floating_point()), None
    )
    if parameter is None:
        raise ValueError(
            f"{type(network).__name__} has no parameter of real floating-point numbers, so there is"
            " nothing to prune"
        )
    if (input_shape is None) == (example_input is None):
        raise ValueError(
            "give either input_shape=(C, H, W) or example_input=, the arguments of forward() with"
            " a batch dimension"
        )
    if input_shape is not None:
        if not isinstance(input_shape, Sequence) or not all(
            isinstance(size, int) and size > 0 for size in input_shape
        ):
            shown = tuple(input_shape) if isinstance(input_shape, Sequence) else input_shape
            raise ValueError(
                f"input_shape: {shown} must be positive whole numbers without the batch, such as"
                " (3, 32, 32)"
            )
        return (torch.ones(1, *input_shape, device=parameter.device, dtype=parameter.dtype),)
    inputs = as_inputs(example_input)
    for tensor in inputs:
        if tensor.is_meta:
            raise ValueError(
                "example_input: a tensor on the meta device has no values; give one on the"
                " network's device"
            )
    return inputs.replaced(
        tensor.detach().to(
            parameter.device, parameter.dtype if tensor.is_floating_point() else tensor.dtype
        )
        for tensor in inputs
    )


class Inputs(tuple[Tensor, ...]):
    """Tensors of a network's inputs, and the arguments of ``forward()`` that contain them.

    Iterating yields the tensors, in the order of the arguments. Made by :func:`as_inputs`.

    Example:
        >>> inputs = as_inputs({"x": torch.ones(1, 2), "scale": 0.5})
        >>> len(inputs), inputs.arguments()[1]["scale"]
        (1, 0.5)
    """

    _leaves: list[Any]
    _structure: TreeSpec

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of ``forward()``, by position and by keyword."""
        tensors = iter(self)
        leaves = [next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        positional, keywords = tree_unflatten(leaves, self._structure)
        return positional, keywords

    def replaced(self, tensors: Iterable[Tensor]) -> Inputs:
        """Return the same arguments with other tensors.

        Args:
            tensors: One tensor for each of these.
        """
        other = Inputs(tensors)
        other._leaves, other._structure = self._leaves, self._structure
        return other


def as_inputs(example: Any) -> Inputs:
    """Return the inputs of a network from an example of them.

    Args:
        example: Tensor; tuple or list of the arguments of ``forward()`` by position; or dictionary
            of arguments by name. An argument may be of any type, and the tensors in nested tuples,
            lists and dictionaries are inputs.

    Raises:
        TypeError: If it is none of these.
        ValueError: If it has no tensor.

    Example:
        >>> [tuple(tensor.shape) for tensor in as_inputs([torch.ones(1, 2), {"y": torch.ones(3)}])]
        [(1, 2), (3,)]
    """
    if isinstance(example, Inputs):
        return example
    if isinstance(example, Mapping) and all(isinstance(name, str) for name in example):
        return from_arguments((), dict(example))
    if isinstance(example, (tuple, list)):
        return from_arguments(tuple(example), {})
    if isinstance(example, Tensor):
        return from_arguments((example,), {})
    kind = "None" if example is None else f"a {type(example).__name__}"
    raise TypeError(
        f"example_input: expected a tensor, got {kind}; give a tensor, a tuple of the arguments"
        " that forward() takes by position, or a dictionary of those it takes by keyword"
    )


def from_arguments(positional: tuple[Any, ...], keywords: dict[str, Any]) -> Inputs:
    """Return the inputs of a network from the arguments of a call.

    Args:
        positional: Arguments by position.
        keywords: Arguments by keyword.

    Raises:
        ValueError: If they contain no tensor.
    """
    leaves, structure = tree_flatten((positional, keywords))
    inputs = Inputs(leaf for leaf in leaves if isinstance(leaf, Tensor))
    if not inputs:
        raise ValueError(
            "example_input: there is no tensor in it; give the arguments that forward() takes"
        )
    inputs._leaves, inputs._structure = leaves, structure
    return inputs


def call(network: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """Return what a network returns for its inputs.

    Args:
        network: The network.
        inputs: Its inputs; a plain tuple holds tensors by position.
    """
    positional, keywords = as_inputs(inputs).arguments()
    return network(*positional, **keywords)
