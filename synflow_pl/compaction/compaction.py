"""compact(): build the smaller network that computes the same function as a pruned one.

A unit is removed if it cannot change the output: no kept weight reads it, or it is a constant that
can be folded exactly into the biases of the layers that read it. These parts decide:

- :mod:`synflow_pl.compaction.channel_groups`: which slices can only be removed together;
- :mod:`synflow_pl.compaction.channel_usage`: which inputs each unit needs;
- :mod:`synflow_pl.compaction.kept_slices`: which slices stay;
- :mod:`synflow_pl.compaction.agreement`: whether the smaller network has the same outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from synflow_pl.compaction.agreement import Agreement, Unverifiable
from synflow_pl.compaction.attention_heads import attributes_of_fewer_heads, find_heads
from synflow_pl.compaction.bias_folding import foldable_biases, parameter_names
from synflow_pl.compaction.channel_groups import ChannelGroups
from synflow_pl.compaction.channel_usage import ChannelUsage, measure_usage
from synflow_pl.compaction.checked_trace import trace_for_compaction
from synflow_pl.compaction.constant_propagation import interpret, unknown
from synflow_pl.compaction.kept_slices import KeptSlices
from synflow_pl.compaction.network_copies import masked_copy, masked_tensors
from synflow_pl.compaction.resize import resize
from synflow_pl.compaction.shape_table import shape_table
from synflow_pl.flow import example_of
from synflow_pl.graph.network_copy import duplicate
from synflow_pl.graph.trace import Operation, Value
from synflow_pl.masks import Masks

__all__ = ["Compaction", "compact"]


def compact(
    network: nn.Module,
    masks: Masks,
    example_input: Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    input_shape: Sequence[int] | None = None,
) -> nn.Module:
    """Return the pruned network without the units that cannot change its output.

    The result has the same classes with smaller layers, and in eval mode it computes the same
    function. :class:`Compaction` also reports what was not removed and why.

    Args:
        network: The pruned network, which is not changed. Its pruned weights need not be zero.
        masks: Masks of the network.
        example_input: Arguments of ``forward()`` with the batch dimension, as
            :func:`synflow_pl.prune` takes them. The result is for inputs of this size, because
            padding reaches other positions at another size.
        input_shape: Alternative to ``example_input`` for networks with one input: the shape
            (C, H, W) of one image.

    Returns:
        A new network on the same device.

    Raises:
        ValueError: If the masks are not the network's, neither input is given, the tensors in an
            output cannot be accessed, or the forward pass converts tensors to lists or arrays or
            cannot be traced.

    Example:
        >>> import torch
        >>> from synflow_pl import Masks, compact
        >>> network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)).eval()
        >>> masks = Masks(
        ...     {
        ...         "0.weight": torch.ones(3, 2, dtype=torch.bool),
        ...         "1.weight": torch.tensor([[True, False, True]]),
        ...     }
        ... )
        >>> compact(network, masks, input_shape=(2,))
        Sequential(
          (0): Linear(in_features=2, out_features=2, bias=True)
          (1): Linear(in_features=2, out_features=1, bias=True)
        )
    """
    return Compaction(network, masks, example_of(network, input_shape, example_input)).network


class Compaction:
    """A smaller network that computes the same function as a pruned one, and a report about it.

    Args:
        network: The pruned network, which is not changed. Its pruned weights need not be zero.
        masks: Masks of the network.
        inputs: Inputs as :func:`synflow_pl.flow.example_of` returns them.
        training: Whether the smaller network will be trained. Its outputs are then compared in
            train mode as well, no weight, shift or statistic counts as constant except for the
            zeros of the masks, and nothing is folded into biases.

    Attributes:
        network: The smaller network, or a copy of the whole one if it could not be made smaller.
        masks: Masks of the smaller network.
        kept: Indices kept along each dimension, by parameter or buffer name.
        attributes: Attributes of modules with fewer attention heads, by module and attribute.
        notes: Reasons why units were not removed, each a whole sentence without a full stop.

    Example:
        >>> import torch
        >>> from synflow_pl import Compaction, Masks
        >>> network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)).eval()
        >>> masks = Masks(
        ...     {
        ...         "0.weight": torch.ones(3, 2, dtype=torch.bool),
        ...         "1.weight": torch.tensor([[True, False, True]]),
        ...     }
        ... )
        >>> compaction = Compaction(network, masks, (torch.ones(1, 2),))
        >>> compaction.network[0].out_features
        2
        >>> compaction.kept["1.weight"]
        [tensor([0]), tensor([0, 2])]
    """

    def __init__(
        self,
        network: nn.Module,
        masks: Masks,
        inputs: tuple[Tensor, ...],
        *,
        training: bool = False,
    ) -> None:
        masks.parameters(network)
        self._training = training
        self._full = masked_tensors(network, masks)
        self._recording = trace_for_compaction(network, inputs)
        self._names = parameter_names(self._recording)
        self._biases: dict[str, str] = (
            {} if training else foldable_biases(network, self._recording, self._names)
        )
        self.notes: tuple[str, ...] = ()
        self._tensors: dict[str, Tensor] = {}
        self.attributes: dict[str, dict[str, int]] = {}
        if not (fault := self._shrink(network, masks, inputs)):
            self.network = resize(duplicate(network), self._tensors, self.attributes)
            self.masks = Masks(
                {name: self.cut(name, masks[name]) for name in masks}, masks.followers
            )
        else:
            self.kept = {
                name: [torch.arange(size) for size in tensor.shape]
                for name, tensor in self._full.items()
            }
            self.attributes = {}
            self.notes = (f"nothing was taken out: {fault}",)
            self.network, self.masks = masked_copy(network, masks), masks

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """Return the part of a tensor at the indices kept of a parameter or buffer.

        Args:
            name: Name of the parameter or buffer.
            tensor: Tensor in its original shape.
        """
        for dim, indices in enumerate(self.kept[name]):
            tensor = tensor.index_select(dim, indices.to(tensor.device))
        return tensor

    def table(self) -> str:
        """Return the shapes of each weight before and after, and the notes, as plain text."""
        return shape_table(self._full, dict(self.network.named_parameters()), self.notes)

    def _shrink(self, network: nn.Module, masks: Masks, inputs: tuple[Tensor, ...]) -> str:
        """Decide what is kept, and repeat with fewer removals until the outputs agree.

        Returns:
            The reason why the network cannot be made smaller, "" if it was.
        """
        agreement = None
        whole: dict[str, str] = {}  # modules that cannot be smaller, with the reason
        fixed: set[str] = set()  # modules whose grouped convolutions cannot have fewer groups
        heads, head_notes = find_heads(self._recording), list[str]()
        while True:
            groups = ChannelGroups(self._recording, whole, fixed, heads)
            usages, branching = self._measure_usages(groups, masks)
            if branching:
                return (
                    f"{type(network).__name__}.forward reads values of tensors that depend on its"
                    f" input ({_places(branching)}), and may take another branch on other"
                    " values"
                )
            slices = KeptSlices(groups, usages)
            self.kept = slices.indices()
            self.notes = (*slices.notes(network, masks), *head_notes)
            self._tensors = self._smaller(slices, usages)
            self.attributes = attributes_of_fewer_heads(network, groups.splits, slices.number)
            if whole and all(
                self._tensors[name].shape == tensor.shape for name, tensor in self._full.items()
            ):
                return next(iter(whole.values()))
            try:
                agreement = agreement or Agreement(
                    partial(masked_copy, network, masks), inputs, training=self._training
                )
            except Unverifiable as error:
                return str(error)
            fault, where = agreement.fault(network, self._tensors, self.attributes)
            self.notes += (agreement.note,) if agreement.note else ()
            if fault and self.attributes:
                heads, kinds = self._without_heads(network, heads, where)
                head_notes.append(f"the attention heads of {kinds}; {fault}")
                continue
            if where is None:
                return fault
            if where not in fixed and self._has_groups(where):
                fixed.add(where)
                continue
            while where in whole:  # a module that contains it may depend on its size
                if not where:
                    return fault
                where = where.rpartition(".")[0]
            whole[where] = fault

    def _without_heads(
        self, network: nn.Module, heads: dict[int, frozenset[int]], where: str | None
    ) -> tuple[dict[int, frozenset[int]], str]:
        """Return the operations that may lose heads, without those of classes that fail.

        Args:
            network: The whole network.
            heads: Operations whose output has the heads of an attention.
            where: Name of the module that fails, ``None`` if none does.

        Returns:
            The operations, and the names of the classes.
        """
        modules = dict(network.named_modules())
        failing = [
            name for name in self.attributes if where is None or f"{where}.".startswith(f"{name}.")
        ]
        kinds = {type(modules[name]) for name in failing or self.attributes}
        left = {
            index: dims
            for index, dims in heads.items()
            if type(modules[self._recording.operations[index].module]) not in kinds
        }
        return left, ", ".join(sorted(kind.__name__ for kind in kinds))

    def _has_groups(self, module: str) -> bool:
        convolutions = (
            operation for operation in self._recording.operations if operation.name == "convolution"
        )
        return any(
            operation.module == module and operation.bound()["groups"] > 1
            for operation in convolutions
        )

    def _measure_usages(
        self, groups: ChannelGroups, masks: Masks
    ) -> tuple[list[ChannelUsage], Sequence[Operation]]:
        """Return the usage of each contraction, and the operations that may choose a branch."""
        contractions = {contraction.index: contraction for contraction in groups.contractions}
        usages: list[ChannelUsage] = []

        def measure(index: int, operation: Operation, tensor: Callable[[Value], Tensor]) -> None:
            if (contraction := contractions.get(index)) is not None:
                value = operation.outputs[0]
                assert value is not None
                output = self._recording.tensors[value.number]
                foldable = self._names.get(contraction.weight.number) in self._biases
                usages.append(measure_usage(contraction, operation, output, tensor, foldable))

        branching = interpret(self._recording, self._replacements(masks), measure)
        return usages, branching

    def _replacements(self, masks: Masks) -> dict[int, Tensor]:
        """Return the tensors to interpret the graph on, by value number, NaN for unknown values.

        Inputs are unknown, and for training also parameters and running statistics.
        """
        replacements = {
            value.number: unknown(self._recording.tensors[value.number])
            for value in self._recording.inputs
        }
        for number, name in self._recording.parameters.items():
            tensor = self._full[name]
            if self._training and tensor.is_floating_point():
                tensor = unknown(tensor)
                if name in masks:
                    tensor = tensor.masked_fill(~masks[name].to(tensor.device), 0)
            replacements[number] = tensor
        return replacements

    def _smaller(self, slices: KeptSlices, usages: Sequence[ChannelUsage]) -> dict[str, Tensor]:
        """Return the tensors of the smaller network, with constants folded into the biases."""
        tensors = dict(self._full)
        kept = dict(self.kept)
        for usage in usages:
            weight = self._names.get(usage.contraction.weight.number)
            if weight not in self._biases:
                continue
            bias = self._biases[weight]
            removed = slices.removed_columns(usage)
            bias_term = usage.bias_term[:, removed].sum(1).to(self._full[weight].device)
            # The constant of a column that stays because its layer has no other is in the bias.
            tensors[weight] = tensors[weight].index_fill(
                1, removed.nonzero().flatten().to(bias_term.device), 0
            )
            if bias in tensors:
                tensors[bias] = tensors[bias] + bias_term
            elif bias_term.any():
                tensors[bias] = bias_term
                kept[bias] = self.kept[weight][:1]
        self.kept = kept
        return {name: self.cut(name, tensor) for name, tensor in tensors.items()}


def _places(operations: Sequence[Operation]) -> str:
    """Return a list of operations and the modules that called them, without repetitions."""
    return ", ".join(
        dict.fromkeys(f"{x.name} in {x.module}" if x.module else x.name for x in operations)
    )
