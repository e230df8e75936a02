"""Groups of parameter slices that can only be removed together.

Every index along every dimension of a parameter gets an id. The ids are propagated through the
operations of a traced graph, and each axis of a value stores the ids of its entries. The output
channels of a convolution have the ids of the weight's rows, a flattened image repeats each
channel's id once per position, and a concatenation concatenates the ids.

- Two axes that must agree entry by entry are *joined*: the columns of a weight and the channels
  that it reads, the terms of a residual sum, a signal and the gain of a BatchNorm.
- The channels of an attention head are joined, in queries, keys, values and where they are merged.
- An axis whose entries an operation combines is *pinned*, because the result would change if some
  entries were removed: the statistics of a LayerNorm, a softmax, a split in halves.
- An operation without a rule pins everything that it reads, so a missing rule cannot cause a wrong
  removal.

The rules are about ATen operations (:mod:`synflow_pl.graph.trace`); no layer or architecture is
treated specially.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

import torch

from synflow_pl.compaction import layer_rules, shape_rules
from synflow_pl.compaction.attention_heads import PRODUCTS
from synflow_pl.compaction.slice_ids import Rule, SliceIds
from synflow_pl.graph import operators
from synflow_pl.graph.trace import Graph, Operation

__all__ = ["OUTPUT", "ChannelGroups", "has_rule"]

OUTPUT = "output of the network"


class ChannelGroups(SliceIds):
    """The ids of parameter slices after the rules of all operations of a graph.

    Args:
        recording: Graph of the network.
        whole: Modules that must keep all their slices, by name, with the reason.
        fixed: Names of modules whose forward pass fixes the number of groups of their grouped
            convolutions.
        heads: Operations whose output has the heads of an attention, as
            :func:`synflow_pl.compaction.attention_heads.find_heads` returns them. Without them,
            the channels of queries, keys and values are pinned.
    """

    def __init__(
        self,
        recording: Graph,
        whole: Mapping[str, str] = MappingProxyType({}),
        fixed: Collection[str] = (),
        heads: Mapping[int, frozenset[int]] = MappingProxyType({}),
    ) -> None:
        super().__init__(recording, fixed, heads)
        read = set()
        for self.index, operation in enumerate(recording.operations):
            reads = {value.number for value in operation.reads}
            read |= reads
            if reads & self.flow:
                self.flow.update(output.number for output in operation.results)
            if heads and operation.name in PRODUCTS:
                layer_rules.product_of_signals(self, operation)
            elif operation.name in _RULES:
                _RULES[operation.name](self, operation)
            elif _is_pointwise(operation):
                layer_rules.pointwise(self, operation)
            else:
                self.pin_reads(operation)
        for number in recording.parameters.keys() - read:
            self.pin(self.axes[number], "not read in evaluation")
        for value in recording.outputs:
            self.pin(self.of(value), OUTPUT)
        for name, why in whole.items():
            for operation in recording.operations:
                if f"{operation.module}.".startswith(f"{name}."):
                    for value in (*operation.reads, *operation.results):
                        self.pin(self.of(value), why)


def has_rule(operation: Operation) -> bool:
    """Return whether there is a rule for the operation."""
    return operation.name in _RULES or _is_pointwise(operation)


def _is_pointwise(operation: Operation) -> bool:
    return (
        torch.Tag.pointwise in operation.target.tags
        or operation.name in operators.POINTWISE_WITHOUT_TAG
    )


_RULES: dict[str, Rule] = {
    "convolution": layer_rules.convolution,
    "mm": layer_rules.product,
    "addmm": layer_rules.product,
    **dict.fromkeys(operators.BATCH_NORMS, layer_rules.batch_norm),
    "native_layer_norm": layer_rules.layer_norm,
    "native_group_norm": layer_rules.group_norm,
    **dict.fromkeys(("mean", "sum", "amax", "amin"), layer_rules.reduction),
    **dict.fromkeys(operators.SOFTMAXES | {"_log_softmax"}, layer_rules.softmax),
    **dict.fromkeys(
        operators.POOLS | operators.RESIZES | operators.BICUBIC_RESIZES | operators.PADS,
        layer_rules.windows,
    ),
    "constant_pad_nd": layer_rules.padding,
    "cat": shape_rules.concatenation,
    "stack": shape_rules.stack,
    **dict.fromkeys(("t", "transpose", "permute"), shape_rules.permutation),
    "unsqueeze": shape_rules.unsqueeze,
    "squeeze": shape_rules.squeeze,
    "expand": shape_rules.expansion,
    "slice": shape_rules.slicing,
    **dict.fromkeys(("select", "unbind"), shape_rules.selection),
    **dict.fromkeys(operators.SPLITS, shape_rules.splitting),
    **dict.fromkeys(operators.RESHAPES, shape_rules.view),
    "as_strided": shape_rules.restriding,
    # A clone is pointwise, as torch tags it.
    **dict.fromkeys(
        (operators.ALIASES - {"clone"}) | operators.CONVERSIONS, shape_rules.same_shape
    ),
    **dict.fromkeys(operators.CREATED_LIKE, shape_rules.same_shape),
    **dict.fromkeys(operators.CREATED_NEW, shape_rules.new_tensor),
    "index": shape_rules.index,
    "index_select": shape_rules.index_select,
    "index_add": shape_rules.index_add,
}
