"""Acting parameters: those that act on the signal in a contraction, whichever module owns them.

A contraction is a matrix product, a convolution or another sum of products. Its weight may be a
parameter of any class: a matrix with the inputs first, a stack of experts, a matrix in an einsum.
The weight may also be computed from a parameter (normalised, masked), if an entry that is zero in
the parameter stays zero in the weight.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from synflow_pl.flow.replay import (
    Replay,
    computed_weights,
    weights_nonzero_after_masking,
)
from synflow_pl.graph import operators
from synflow_pl.graph.operation import values_in
from synflow_pl.graph.trace import Graph, Operation, trace
from synflow_pl.prunable_parameters import prunable, unclassified

__all__ = ["acting_on", "acting_parameters", "graph_weights"]


def acting_parameters(network: nn.Module, graph: Graph) -> tuple[str, ...]:
    """Return the names of parameters that act on the signal and belong to no class of known layers.

    They are matrices and larger tensors of floating-point numbers. Tables that are looked up, and
    what is added to the signal or multiplies it entry by entry, do not act in a contraction.

    Args:
        network: Network under study.
        graph: Its graph, made by :func:`synflow_pl.flow.trace`.

    Returns:
        Names in the order of ``network.named_parameters()``.

    Example:
        >>> import torch
        >>> from synflow_pl.flow import trace
        >>> network = nn.Bilinear(2, 3, 4)
        >>> acting_parameters(network, trace(network, (torch.ones(1, 2), torch.ones(1, 3))))
        ('weight',)
    """
    candidates = unclassified(network)
    if not candidates:
        return ()
    operands = _operands(graph, candidates)
    parameters = dict(network.named_parameters())
    computed_of = computed_weights(graph, operands)
    acting = []
    for name, numbers in operands.items():
        computed = computed_of.keys() & numbers
        # A factor of a product of matrices, for example, acts through a tensor of another size.
        if not computed or (
            all(graph.tensors[x].numel() == candidates[name].numel() for x in computed)
            and not weights_nonzero_after_masking(graph, {name}, parameters, computed)
            and _finite_without_slices(graph, name, parameters, computed)
        ):
            acting.append(name)
    return tuple(acting)


def _finite_without_slices(
    graph: Graph, name: str, parameters: Mapping[str, Tensor], computed: Collection[int]
) -> bool:
    """Return whether computed weights are finite if a unit or an input of a parameter is zero.

    Weight normalisation divides a unit by its norm, which is not finite if the unit is pruned.
    """
    replay, parameter = Replay(graph, computed), parameters[name].detach()
    for dim in (dim for dim, size in enumerate(parameter.shape) if size > 1):
        pruned = parameter.clone()
        pruned.select(dim, 0).zero_()
        if not all(bool(x.isfinite().all()) for x in replay.values({name: pruned}).values()):
            return False
    return True


def graph_weights(network: nn.Module, graph: Graph) -> dict[str, nn.Parameter]:
    """Return the prunable parameters of a traced network, those that act on the signal included.

    Args:
        network: Network under study.
        graph: Its graph.

    Raises:
        ValueError: If nothing is prunable.
    """
    return prunable(network, acting=acting_parameters(network, graph))


def acting_on(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[str, ...]:
    """Return :func:`acting_parameters` of a network that is traced only if it may have some.

    Args:
        network: Network under study.
        inputs: Example inputs, as returned by :func:`synflow_pl.flow.example_of`.
    """
    return acting_parameters(network, trace(network, inputs)) if unclassified(network) else ()


def _operands(graph: Graph, candidates: Collection[str]) -> dict[str, set[int]]:
    """Return the candidates that act in a contraction with a signal.

    Args:
        graph: Graph of the network.
        candidates: Names of parameters.

    Returns:
        By name, in the order of ``candidates``, the numbers of the values that act and that the
        parameter is a part of.
    """
    signals = {value.number for value in graph.inputs}
    made_of: dict[int, set[str]] = {
        number: {name} for number, name in graph.parameters.items() if name in candidates
    }
    operands: dict[str, set[int]] = {name: set() for name in candidates}
    for operation in graph.operations:
        read = {value.number for value in operation.reads}
        outputs = [output.number for output in operation.results]
        if not read.isdisjoint(signals):
            for number in _weights(operation) - signals:
                for name in made_of.get(number, ()):
                    operands[name].add(number)
            signals.update(outputs)
        elif names := set().union(*(made_of.get(number, ()) for number in read)):
            made_of.update(dict.fromkeys(outputs, names))
    return {name: numbers for name, numbers in operands.items() if numbers}


def _weights(operation: Operation) -> set[int]:
    """Return the numbers of the values that may be the weight of a contraction."""
    arguments = operation.bound()
    if operation.name in operators.RECURRENT_WEIGHTS:
        keys = operators.RECURRENT_WEIGHTS[operation.name]
    elif operation.name in ("convolution", "deform_conv2d"):
        keys = ("weight",)
    elif operation.name in operators.MATRIX_PRODUCTS:
        keys = ("self", "mat1", "mat2", "mat", "vec", "batch1", "batch2")
        if operation.name.startswith(("add", "badd")):
            keys = keys[1:]  # self is added
    elif operation.name == "_trilinear":
        keys = ("i1", "i2", "i3")
    else:
        return set()
    return {value.number for value in values_in([arguments.get(key) for key in keys])}
