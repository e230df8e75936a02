"""Analysis of nodes: which are needed, which weights act in them, when values are used last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from synflow_pl.flow.convolution import convolve
from synflow_pl.flow.node import Node
from synflow_pl.graph.operation import Value

__all__ = ["acting_weights", "last_uses", "name_weights", "needed"]


def needed(nodes: list[Node], outputs: tuple[int, ...]) -> list[Node]:
    """Return the nodes that an output depends on, in order."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.operands)
            kept.append(node)
    return kept[::-1]


def acting_weights(
    nodes: list[Node], flow: frozenset[int], names: Mapping[int, str]
) -> dict[int, tuple[str, ...]]:
    """Return the names of the weights that act on the signal in each contraction.

    A weight may be read as it is or through other operations.

    Returns:
        Names by the number of the contraction's output.
    """
    origin: dict[int, tuple[str, ...]] = {number: (name,) for number, name in names.items()}
    weights_of: dict[int, tuple[str, ...]] = {}
    for node in nodes:
        made_of = tuple(
            dict.fromkeys(name for number in node.operands for name in origin.get(number, ()))
        )
        if not flow.intersection(node.operands):
            origin.update(dict.fromkeys(node.outputs, made_of))
        elif node.contraction:
            weights_of[node.outputs[0]] = made_of
    return weights_of


def last_uses(nodes: list[Node], outputs: tuple[int, ...]) -> dict[int, list[int]]:
    """Return the computed values that are no longer needed after each node, by its index."""
    made = {number for node in nodes for number in node.outputs if number >= 0}
    last = {
        number: index
        for index, node in enumerate(nodes)
        for number in (*node.outputs, *node.operands)
        if number in made
    }
    release: dict[int, list[int]] = {}
    for number, index in last.items():
        if number not in outputs:
            release.setdefault(index, []).append(number)
    return release


def name_weights(nodes: list[Node], names: dict[int, str]) -> list[Node]:
    """Set `weight` of each node whose weight is a plain matrix or kernel with a single reader."""
    readers = Counter(number for node in nodes for number in node.operands)
    made_by = {node.outputs[0]: node for node in nodes}
    named = []
    for node in nodes:
        name = None
        if (
            node.contraction
            and isinstance(node.args[1], Value)
            and readers[node.args[1].number] == 1
        ):
            number = node.args[1].number
            if node.function is convolve:
                transposed, groups = node.args[6], node.args[8]
                name = names.get(number) if groups == 1 and not transposed else None
            elif number in made_by and made_by[number].name == "t":
                source = made_by[number].operands[0]
                name = names.get(source) if readers[source] == 1 else None
        named.append(replace(node, weight=name))
    return named
