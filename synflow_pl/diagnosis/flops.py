"""FLOPs of one forward pass, dense and sparse: two for each multiplication and addition, as :mod:`torch.utils.flop_counter` counts.

The dense count is its formulas' for every operation they know: matrix products, convolutions (grouped, depthwise and transposed ones
too), attention. A weight of a layer is multiplied once for each position, padding included, so the sparse count of an operation is
its dense one times the fraction kept of the weight *that it reads*, which may be a part of a parameter (the queries' rows of a fused
projection). An operation that reads none (attention, a product of two signals) counts as dense.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from synflow_pl.flow.recording import Operation, Recording, Value
from synflow_pl.masks import Masks

__all__ = ["Flops", "count_flops"]

# What looks at a weight in another shape, or at a part of it: it is looked at its mask in the same way.
_VIEWS = frozenset(
    """
    t transpose permute view _unsafe_view view_copy reshape _reshape_alias slice narrow select split split_with_sizes unbind unsqueeze
    squeeze expand alias detach clone cat stack contiguous movedim
    """.split()
)


@dataclass
class Flops:
    """FLOPs of a pass, dense and sparse, in all and of the products with each parameter."""

    dense: int = 0
    sparse: int = 0
    dense_of: Counter[str] = field(default_factory=Counter)
    sparse_of: Counter[str] = field(default_factory=Counter)


def count_flops(recording: Recording, masks: Masks) -> Flops:
    """FLOPs of the recorded pass: of all its images together.

    Args:
        recording: of the network.
        masks: its masks.
    """
    # By number, each value made of one masked weight alone: its name and what of it lives.
    living = {number: (name, masks[name]) for number, name in recording.parameters.items() if name in masks.weights}
    signals = {value.number for value in recording.inputs}
    counted = Flops()
    for operation in recording.operations:
        read = [value.number for value in operation.reads if value.number in living]
        if any(value.number in signals for value in operation.reads):
            signals.update(output.number for output in operation.outputs if output is not None)
        elif len({living[number][0] for number in read}) == 1:
            living.update(_followed(operation, recording.tensors, living))
        flops = _dense(operation, recording.tensors)
        if flops is None:
            continue
        sparse = flops
        for number in read:
            name, mask = living[number]
            kept = sparse * int(mask.count_nonzero()) // mask.numel()
            counted.dense_of[name] += flops
            counted.sparse_of[name] += kept
            sparse = kept
        counted.dense += flops
        counted.sparse += sparse
    return counted


def _dense(operation: Operation, tensors: list[Tensor]) -> int | None:
    """FLOPs of an operation, or ``None`` if it is none that is counted."""
    given = operation.bound()
    if "scaled_dot_product" in operation.name:
        query, key, value = (tensors[given[name].number].shape for name in ("query", "key", "value"))
        heads = (*query[:-2],)  # grouped queries share heads of keys and values
        return sdpa_flop_count(query, (*heads, *key[-2:]), (*heads, *value[-2:]))
    packet = operation.target.overloadpacket
    if packet in (torch.ops.aten.mv, torch.ops.aten.addmv):
        matrix = given["self" if packet is torch.ops.aten.mv else "mat"]
        return 2 * tensors[matrix.number].numel()
    if packet not in flop_registry:
        return None

    def leaf(item: object) -> object:
        return tensors[item.number] if isinstance(item, Value) else item

    args, kwargs = tree_map(leaf, (operation.args, operation.kwargs), is_leaf=lambda item: isinstance(item, Value))
    output = operation.outputs[0]
    assert output is not None
    return int(flop_registry[packet](*args, **kwargs, out_val=tensors[output.number]))


def _followed(operation: Operation, tensors: list[Tensor], living: dict[int, tuple[str, Tensor]]) -> dict[int, tuple[str, Tensor]]:
    """What lives of the values that an operation makes of one weight."""
    name, mask = next(living[value.number] for value in operation.reads if value.number in living)
    made: dict[int, tuple[str, Tensor]] = {}
    if operation.name in _VIEWS and all(value.number in living for value in operation.reads):
        args, kwargs = tree_map(
            lambda item: living[item.number][1] if isinstance(item, Value) else item,
            (operation.args, {key: item for key, item in operation.kwargs.items() if key != "dtype"}),
            is_leaf=lambda item: isinstance(item, Value),
        )
        result = operation.target(*args, **kwargs)
        parts = result if isinstance(result, (tuple, list)) else (result,)
        return {output.number: (name, part) for output, part in zip(operation.outputs, parts, strict=True) if output is not None}
    for output in operation.outputs:
        # Entry by entry (another precision, a factor): what lives, lives on.
        if output is not None and tensors[output.number].shape == mask.shape:
            made[output.number] = name, mask
    return made
