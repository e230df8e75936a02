"""Metadata of an exported network that takes other inputs than images."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from synflow_pl.export.argument_structure import (
    arguments_by_name,
    fill_structure,
    match_structure,
    structure_of,
)
from synflow_pl.graph.evaluation import evaluating
from synflow_pl.graph.example_inputs import as_inputs, call

__all__ = ["InputTensor", "TensorMetadata"]


@dataclass(frozen=True)
class InputTensor:
    """Description of one tensor in the arguments of an exported network.

    Attributes:
        name: Name of the argument, followed by keys and indices in it: ``batch.boxes.0``.
        shape: Its shape, without the batch dimension if it is batched.
        dtype: Its dtype, such as ``float32``.
        batched: Whether its first dimension is the batch, which may have any size.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    batched: bool

    def example(self, size: int) -> Tensor:
        """Return zeros, or ones for booleans, of this shape.

        Args:
            size: Size of the batch.
        """
        shape = (size, *self.shape) if self.batched else self.shape
        dtype = getattr(torch, self.dtype)
        return torch.full(shape, dtype == torch.bool, dtype=dtype)

    def fits(self, tensor: Any) -> bool:
        """Return whether a tensor has this shape and dtype."""
        return (
            isinstance(tensor, Tensor)
            and tensor.dim() == len(self.shape) + self.batched
            and tuple(tensor.shape[int(self.batched) :]) == self.shape
            and tensor.dtype == getattr(torch, self.dtype)
        )

    def __str__(self) -> str:
        return f"{self.name} {('N', *self.shape) if self.batched else self.shape} of {self.dtype}"


@dataclass(frozen=True)
class TensorMetadata:
    """Description of an exported network by an example of its arguments.

    It takes the place of :class:`~synflow_pl.export.Metadata`, which describes images. An exported
    network is called with the same arguments as in the example, by position or by keyword, where
    the batch may have another size. Made by :meth:`of`.

    Attributes:
        inputs: Tensors in the arguments.
        arguments: Structure of each argument (:mod:`synflow_pl.export.argument_structure`), by
            name. The file contains the values of what is no tensor.
        parameters: Names of the arguments that ``forward()`` takes by position.
        positional: Number of arguments that the example gives by position.
        output_shape: Shape of the output, without the batch dimension if an input is batched.
        network: Class path of the network.
        properties: Further properties for the model card, by name.

    Example:
        >>> from synflow_pl.export import TensorMetadata
        >>> pair = (torch.ones(3, 4), torch.ones(3, 5))
        >>> metadata = TensorMetadata.of(nn.Bilinear(4, 5, 2), pair)
        >>> [str(tensor) for tensor in metadata.inputs]
        ["input1 ('N', 4) of float32", "input2 ('N', 5) of float32"]
    """

    inputs: tuple[InputTensor, ...]
    arguments: Mapping[str, Any]
    parameters: tuple[str, ...]
    positional: int
    output_shape: tuple[int, ...]
    network: str
    properties: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        network: nn.Module,
        example_input: Any,
        *,
        fixed: Collection[str] = (),
        properties: Mapping[str, Any] | None = None,
    ) -> TensorMetadata:
        """Describe a network by an example of its arguments.

        A tensor is batched if its first dimension has the size of the first dimension of the
        output.

        Args:
            network: Network to export, which is run once, in eval mode.
            example_input: Arguments of ``forward()``: a tensor, a tuple by position or a dictionary
                by keyword, with a batch of at least two.
            fixed: Names of tensors without a batch dimension whose first dimension has the size of
                the batch by chance.
            properties: Further properties for the model card.

        Raises:
            TypeError: If ``example_input`` is no tensor, tuple, list or dictionary.
            ValueError: If the output is not one tensor, the batch has one example, a name in
                ``fixed`` is unknown, or an argument can not be written to a file.
        """
        inputs = as_inputs(example_input)
        signature = inspect.signature(network.forward).parameters.values()
        parameters = tuple(
            each.name for each in signature if each.kind <= each.POSITIONAL_OR_KEYWORD
        )
        positional, keywords = inputs.arguments()
        tensors: dict[str, Tensor] = {}
        arguments = {
            name: structure_of(value, name, tensors)
            for name, value in arguments_by_name(positional, keywords, parameters).items()
        }
        with evaluating(network), torch.no_grad():
            output = call(network, inputs)
        if not isinstance(output, Tensor):
            raise ValueError(
                f"{type(network).__name__}.forward returns a {type(output).__name__}, expected one"
                " tensor; wrap the network in a module that returns it"
            )
        size = output.shape[0] if output.dim() else None
        if unknown := set(fixed) - tensors.keys():
            raise ValueError(f"fixed: {min(unknown)!r} is none of the tensors {', '.join(tensors)}")
        batched = {
            name: name not in fixed and tensor.dim() > 0 and tensor.shape[0] == size
            for name, tensor in tensors.items()
        }
        if any(batched.values()) and size == 1:
            raise ValueError(
                "example_input: its batch has one example, expected at least two, so that a batch"
                " of any size can be exported"
            )
        return cls(
            tuple(
                InputTensor(
                    name,
                    tuple(tensor.shape[int(batched[name]) :]),
                    str(
                        tensor.float().dtype if tensor.is_floating_point() else tensor.dtype
                    ).removeprefix("torch."),
                    batched[name],
                )
                for name, tensor in tensors.items()
            ),
            arguments,
            parameters,
            len(positional),
            tuple(output.shape[int(any(batched.values())) :]),
            f"{type(network).__module__}.{type(network).__qualname__}",
            dict(properties or {}),
        )

    def json(self) -> str:
        """Return the metadata as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> TensorMetadata:
        """Return the metadata with the content of JSON written by :meth:`json`.

        Raises:
            ValueError: If the content is not valid metadata.
            KeyError: If an entry is missing.
            TypeError: If an entry has another type.
        """
        inputs = tuple(
            InputTensor(
                str(entry["name"]),
                _sizes(entry["shape"]),
                str(entry["dtype"]),
                bool(entry["batched"]),
            )
            for entry in content["inputs"]
        )
        for tensor in inputs:
            if not isinstance(getattr(torch, tensor.dtype, None), torch.dtype):
                raise ValueError(f"dtype: {tensor.dtype!r}")
        return cls(
            inputs,
            dict(content["arguments"]),
            tuple(map(str, content["parameters"])),
            int(content["positional"]),
            _sizes(content["output_shape"]),
            str(content["network"]),
            dict(content["properties"]),
        )

    @property
    def input_names(self) -> list[str]:
        """Return the names of the tensors, in the order in which a file takes them."""
        return [tensor.name for tensor in self.inputs]

    @property
    def batched(self) -> list[bool]:
        """Return for each tensor whether its first dimension is the batch."""
        return [tensor.batched for tensor in self.inputs]

    def tensors(self, *positional: Any, **keywords: Any) -> tuple[Tensor, ...]:
        """Return the tensors in the arguments of a call, in the order of :attr:`inputs`.

        Raises:
            ValueError: If an argument is missing, unknown, or differs from the example in shape,
                dtype or, where it is no tensor, in value.
        """
        given = arguments_by_name(positional, keywords, self.parameters)
        if given.keys() != self.arguments.keys():
            raise ValueError(
                f"arguments: {', '.join(given) or 'none'}, expected {', '.join(self.arguments)}"
            )
        found: dict[str, Tensor] = {}
        for name, structure in self.arguments.items():
            match_structure(structure, given[name], name, found)
        for tensor in self.inputs:
            if not tensor.fits(found[tensor.name]):
                other = found[tensor.name]
                shown = f"{tuple(other.shape)} of {str(other.dtype).removeprefix('torch.')}"
                raise ValueError(f"{tensor.name}: {shown}, expected {tensor}")
        tensors = tuple(found[name] for name in self.input_names)
        sizes = {len(each) for each, batched in zip(tensors, self.batched, strict=True) if batched}
        if len(sizes) > 1:
            raise ValueError(f"inputs: their batches have the sizes {sorted(sizes)}")
        return tensors

    def call_with(self, tensors: Iterable[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of ``forward()``, by position and by keyword.

        Args:
            tensors: Tensors in the order of :attr:`inputs`.
        """
        by_name = dict(zip(self.input_names, tensors, strict=True))
        values = {
            name: fill_structure(structure, by_name.__getitem__)
            for name, structure in self.arguments.items()
        }
        names = list(values)
        return (
            tuple(values[name] for name in names[: self.positional]),
            {name: values[name] for name in names[self.positional :]},
        )

    def example(self) -> tuple[Tensor, ...]:
        """Return zeros for a batch of two, in the order of :attr:`inputs`."""
        return tuple(tensor.example(2) for tensor in self.inputs)

    def expected_output(self) -> tuple[int, ...]:
        """Return the shape of the output for :meth:`example`."""
        return (2, *self.output_shape) if any(self.batched) else self.output_shape

    def card(self) -> list[str]:
        """Return the lines of the model card about inputs and output."""
        shape = ("N", *self.output_shape) if any(self.batched) else self.output_shape
        return [
            *(f"- input {tensor}" for tensor in self.inputs),
            f"- arguments: {json.dumps(self.arguments)}",
            f"- output {shape} of float32",
        ]


def _sizes(shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape)
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise ValueError(f"shape: {shape!r}")
    return sizes
