"""The layers into whose biases constants can be folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import nn

from synflow_pl.graph.trace import Graph

__all__ = ["foldable_biases", "parameter_names"]


def parameter_names(graph: Graph) -> dict[int, str]:
    """Return the names of parameters by the number of the value that is one or its transpose.

    Args:
        graph: Graph of the network.
    """
    names = dict(graph.parameters)
    for operation in graph.operations:
        if (
            operation.name == "t"
            and operation.args[0].number in names
            and operation.outputs[0] is not None
        ):
            names[operation.outputs[0].number] = names[operation.args[0].number]
    return names


def foldable_biases(network: nn.Module, graph: Graph, names: Mapping[int, str]) -> dict[str, str]:
    """Return the names of the biases into which constants can be folded, by the weight's name.

    These are the biases, existing or not, of layers whose weight is read exactly once.

    Args:
        network: The network.
        graph: Graph of the network.
        names: Result of :func:`parameter_names`.
    """
    modules = dict(network.named_modules())
    reads = _count_reads(graph, names)
    # A linear layer multiplies by its transposed weight. In a product with the weight itself, rows
    # are inputs and columns are units.
    used_untransposed = {
        graph.parameters.get(value.number)
        for operation in graph.operations
        if operation.name not in ("t", "convolution")
        for value in operation.reads
    }
    biases = {}
    for name, count in reads.items():
        if name is None or not name.endswith(".weight") or name in used_untransposed or count != 1:
            continue
        layer = modules.get(name.removesuffix(".weight"))
        supported = isinstance(layer, nn.Linear) or (
            isinstance(layer, nn.modules.conv._ConvNd) and not layer.transposed
        )
        bias = name.removesuffix("weight") + "bias"
        if layer is not None and supported and (layer.bias is None or reads[bias] == 1):
            biases[name] = bias
    return biases


def _count_reads(graph: Graph, names: Mapping[int, str]) -> Counter[str | None]:
    """Return how often each parameter is read, and under ``None`` how often other values are."""
    by_number = Counter(value.number for operation in graph.operations for value in operation.reads)
    reads: Counter[str | None] = Counter()
    for number, count in by_number.items():
        reads[graph.parameters.get(number)] += count
    # A weight's transpose may be read more than once, or be transposed again.
    for number, name in names.items():
        if number not in graph.parameters:
            reads[name] += by_number[number] - 1
    return reads
