"""Weights as stacks of matrices: which dimensions are outputs, inputs and positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synflow_pl.bias_norm_masks import has_units, is_transposed
from synflow_pl.flow import number_units
from synflow_pl.graph.trace import Graph

__all__ = ["MatrixView", "matrix_views"]


@dataclass(frozen=True)
class MatrixView:
    """Dimensions of a weight as a stack of matrices: (stack, outputs, inputs, positions).

    Attributes:
        shape: Shape of the weight.
        stack: Dimensions of which each entry has units and inputs of its own.
        outputs: Dimensions of units.
        inputs: Dimensions of inputs.
        positions: Dimensions of a kernel.
    """

    shape: tuple[int, ...]
    stack: tuple[int, ...] = ()
    outputs: tuple[int, ...] = (0,)
    inputs: tuple[int, ...] = (1,)
    positions: tuple[int, ...] = ()

    @property
    def order(self) -> tuple[int, ...]:
        """Return the dimensions of the weight in the order of the view."""
        return (*self.stack, *self.outputs, *self.inputs, *self.positions)

    @property
    def size(self) -> tuple[int, int, int, int]:
        """Return the shape of the view."""
        stack, outputs, inputs, positions = (
            torch.Size(self.shape[dim] for dim in dims).numel()
            for dims in (self.stack, self.outputs, self.inputs, self.positions)
        )
        return stack, outputs, inputs, positions

    def to_view(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the weight's shape in the shape of the view."""
        return tensor.permute(self.order).reshape(self.size)

    def from_view(self, view: Tensor) -> Tensor:
        """Return a tensor of the view's shape in the shape of the weight."""
        permuted = view.reshape([self.shape[dim] for dim in self.order])
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return permuted.permute(back).contiguous()


def matrix_views(
    network: nn.Module, weights: Mapping[str, Tensor], graph: Graph | None
) -> dict[str, MatrixView]:
    """Return the views of weights, by name.

    Args:
        network: Network that has the weights.
        weights: Weights by name.
        graph: Graph of the network, which shows the dimensions of weights of other classes;
            without it, the first dimension of these is that of their units and the second that of
            their inputs.
    """
    others = [name for name in weights if not has_units(network, name)]
    numbers = number_units(graph, others) if graph is not None and others else {}
    views = {}
    for name, weight in weights.items():
        shape, rest = tuple(weight.shape), tuple(range(2, weight.dim()))
        if name in numbers:
            units, inputs = (_varying(each) for each in numbers[name])
            views[name] = MatrixView(
                shape,
                tuple(dim for dim in range(len(shape)) if units[dim] and inputs[dim]),
                tuple(dim for dim in range(len(shape)) if units[dim] and not inputs[dim]),
                tuple(dim for dim in range(len(shape)) if inputs[dim] and not units[dim]),
                tuple(dim for dim in range(len(shape)) if not inputs[dim] and not units[dim]),
            )
        elif is_transposed(network, name):
            views[name] = MatrixView(shape, outputs=(1,), inputs=(0,), positions=rest)
        else:
            views[name] = MatrixView(shape, positions=rest)
    return views


def _varying(numbers: Tensor) -> list[bool]:
    """Return for each dimension whether numbers differ along it."""
    return [bool((numbers != numbers.narrow(dim, 0, 1)).any()) for dim in range(numbers.dim())]
