"""Dense and sparse FLOPs of one forward pass.

A multiplication and an addition count as two FLOPs, as in :mod:`torch.utils.flop_counter`. Its
formulas give the dense count of matrix products, of attention and of convolutions (also grouped,
depthwise and transposed). A weight of a layer is multiplied once for each position, padding
included. The sparse count of an operation is therefore its dense count times the fraction kept of
the weight that the operation reads, which may be a part of a parameter (the rows for the queries
in a fused projection). An operation that reads no weight (attention, a product of two signals) is
counted as dense.

Fused recurrent layers and deformable convolution, which torch does not count, have formulas in this
module. Operations that do a small fixed number of operations for each entry of their input or
output (activations, normalisation, pooling, resizing, lookups) are not counted, as in the papers.
All other operations without a formula are reported by name in :attr:`Flops.missing`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from synflow_pl.graph import operators
from synflow_pl.graph.operation import values_in
from synflow_pl.graph.trace import Graph, Operation, Value, is_number
from synflow_pl.masks import Masks

__all__ = ["Flops", "count_flops"]

# Operations that are applied to a weight's mask as well.
_MASK_MOVES = operators.MOVES | operators.JOINS
# Operations that are not counted and that torch does not mark as pointwise, reduction or view.
_UNCOUNTED = (
    operators.ELEMENTWISE
    | operators.ALIASES
    | operators.CONVERSIONS
    | operators.RESHAPES
    | operators.LINEAR
    | operators.SOFTMAXES
    | operators.NORMALISATIONS
    | operators.MOMENTS
    | operators.BICUBIC_RESIZES
    | operators.EMBEDDINGS
    | operators.CREATED
    | operators.RANDOM
    | frozenset(
        """
        _log_softmax rsub cumprod logcumsumexp cummin argsort argmax argmin norm linalg_vector_norm
        embedding_bag _weight_norm fractional_max_pool2d fractional_max_pool3d max_unpool2d
        max_unpool3d constant_pad_nd copy rot90 scatter_reduce _unsafe_index_put index_fill
        index_reduce masked_scatter masked_select as_strided_scatter take_along_dim glu
        alpha_dropout nonzero _unique2 unique_dim bincount histc bucketize searchsorted one_hot
        diag_embed resize set _pad_packed_sequence index_put _index_put_impl
        """.split()
    )
)


@dataclass
class Flops:
    """FLOPs of one forward pass.

    Attributes:
        dense: FLOPs if no weight were pruned.
        sparse: FLOPs with the kept weights alone.
        dense_of: Dense FLOPs of the products with each parameter, by name.
        sparse_of: Sparse FLOPs of the products with each parameter, by name.
        missing: Number of calls of each operation without a formula.
    """

    dense: int = 0
    sparse: int = 0
    dense_of: Counter[str] = field(default_factory=Counter)
    sparse_of: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)

    @property
    def note(self) -> str | None:
        """One sentence that names the operations without a formula; ``None`` if there are none."""
        if not self.missing:
            return None
        listed = ", ".join(
            name if times == 1 else f"{name} ({times} times)"
            for name, times in self.missing.items()
        )
        return f"FLOPs leave out operations without a formula: {listed}"


def count_flops(recording: Graph, masks: Masks) -> Flops:
    """Count the FLOPs of the recorded forward pass, for all images of the batch together.

    Args:
        recording: Graph of the network.
        masks: Masks of the network.
    """
    # Parameter name and mask of each value that is computed from one masked weight alone.
    value_masks = {
        number: (name, masks[name])
        for number, name in recording.parameters.items()
        if name in masks.weights
    }
    signals = {value.number for value in recording.inputs}
    counted = Flops()
    for operation in recording.operations:
        read = [value.number for value in operation.reads if value.number in value_masks]
        if any(value.number in signals for value in operation.reads):
            signals.update(output.number for output in operation.results)
        elif len({value_masks[number][0] for number in read}) == 1:
            value_masks.update(_output_masks(operation, recording.tensors, value_masks))
        flops = _dense(operation, recording.tensors)
        if flops is None:
            if not _is_uncounted(operation, recording.tensors):
                counted.missing[_qualified_name(operation)] += 1
            continue
        sparse = flops
        for number in read:
            name, mask = value_masks[number]
            kept = sparse * int(mask.count_nonzero()) // mask.numel()
            counted.dense_of[name] += flops
            counted.sparse_of[name] += kept
            sparse = kept
        counted.dense += flops
        counted.sparse += sparse
    return counted


def _dense(operation: Operation, tensors: list[Tensor]) -> int | None:
    """Return the dense FLOPs of an operation, or ``None`` if there is no formula for it."""
    arguments = operation.bound()
    if operation.name in operators.ATTENTIONS:
        query, key, value = (
            tensors[arguments[name].number].shape for name in ("query", "key", "value")
        )
        heads = (*query[:-2],)  # grouped queries share heads of keys and values
        return sdpa_flop_count(query, (*heads, *key[-2:]), (*heads, *value[-2:]))
    name, output = _qualified_name(operation), operation.outputs[0]
    if operation.name in operators.RECURRENT_WEIGHTS:
        # Each weight is used once for each step of each sequence, that is for each row of the
        # input, packed or not.
        rows = tensors[arguments["input"].number]
        weights = [
            tensors[value.number]
            for value in operation.reads
            if _is_weight(operation, arguments, value, tensors)
        ]
        return 2 * (rows.numel() // rows.shape[-1]) * sum(weight.numel() for weight in weights)
    if name == "torchvision.deform_conv2d":
        assert output is not None
        positions = tensors[output.number].shape[0] * tensors[output.number].shape[2:].numel()
        return 2 * tensors[arguments["weight"].number].numel() * positions
    if name in ("aten.dot", "aten.vdot"):
        return 2 * tensors[arguments["self"].number].numel()
    if name == "aten.addbmm":
        left, right = (tensors[arguments[key].number].shape for key in ("batch1", "batch2"))
        return 2 * left.numel() * right[-1]
    packet = operation.target.overloadpacket
    if packet in (torch.ops.aten.mv, torch.ops.aten.addmv):
        matrix = arguments["self" if packet is torch.ops.aten.mv else "mat"]
        return 2 * tensors[matrix.number].numel()
    if packet not in flop_registry:
        return None

    args, kwargs = operation.arguments(lambda value: tensors[value.number])
    assert output is not None
    return int(flop_registry[packet](*args, **kwargs, out_val=tensors[output.number]))


def _is_weight(
    operation: Operation, arguments: dict[str, Any], value: Value, tensors: list[Tensor]
) -> bool:
    """Return whether a value that a fused recurrent layer reads is one of its weight matrices."""
    weights = [arguments[key] for key in operators.RECURRENT_WEIGHTS[operation.name]]
    return value in values_in(weights) and tensors[value.number].dim() > 1


def _qualified_name(operation: Operation) -> str:
    """Return an operation's name with its namespace, without overload: ``aten.convolution``."""
    return operation.target._schema.name.replace("::", ".")


def _is_uncounted(operation: Operation, tensors: list[Tensor]) -> bool:
    """Return whether an operation without a formula does few or no operations for each entry."""
    makes = any(is_number(tensors[output.number]) for output in operation.results)
    reads = any(is_number(tensors[value.number]) for value in operation.reads)
    tags = operation.target.tags
    return (
        not (makes and reads)
        or operation.target.is_view
        or torch.Tag.pointwise in tags
        or torch.Tag.reduction in tags
        or torch.Tag.view_copy in tags
        or (operation.target.namespace in ("aten", "prims") and operation.name in _UNCOUNTED)
    )


def _output_masks(
    operation: Operation, tensors: list[Tensor], value_masks: dict[int, tuple[str, Tensor]]
) -> dict[int, tuple[str, Tensor]]:
    """Return parameter name and mask of the values that an operation computes from one weight."""
    name, mask = next(
        value_masks[value.number] for value in operation.reads if value.number in value_masks
    )
    if operation.name in _MASK_MOVES and all(
        value.number in value_masks for value in operation.reads
    ):
        moved = operation.run(lambda value: value_masks[value.number][1])
        return {number: (name, part) for number, part in moved.items()}
    # Operations entry by entry (a conversion, a factor) leave pruned entries at zero.
    return {
        output.number: (name, mask)
        for output in operation.results
        if tensors[output.number].shape == mask.shape
    }
