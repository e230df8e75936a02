"""compact(): build the smaller network that computes the same function as a pruned one.

A unit is removed if it cannot change the output: no kept weight reads it, or it is a constant that
can be folded exactly into the biases of the layers that read it. The decision is made backwards
from the output. A row of a weight that is kept keeps every column that it needs, and with a column
its whole group of slices (:mod:`synflow_pl.compaction.channel_groups`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from synflow_pl.compaction.agreement import Agreement, Unverifiable, duplicate, first_line
from synflow_pl.compaction.branches import Conversions
from synflow_pl.compaction.channel_groups import OUTPUT, ChannelGroups
from synflow_pl.compaction.channel_usage import ChannelUsage, measure_usage
from synflow_pl.compaction.constant_propagation import interpret, unknown
from synflow_pl.compaction.resize import resize
from synflow_pl.flow import example_of, trace
from synflow_pl.graph.outputs import Opaque
from synflow_pl.graph.trace import Graph, Operation, Value
from synflow_pl.masks import Masks

__all__ = ["Compaction", "compact"]


def compact(
    network: nn.Module,
    masks: Masks,
    example_input: Tensor | tuple[Tensor, ...] | None = None,
    *,
    input_shape: Sequence[int] | None = None,
) -> nn.Module:
    """Return the pruned network without the units that cannot change its output.

    The result has the same classes with smaller layers, and in eval mode it computes the same
    function. :class:`Compaction` also reports what was not removed and why.

    Args:
        network: The pruned network, which is not changed. Its pruned weights need not be zero.
        masks: Masks of the network.
        example_input: A tensor or a tuple of tensors with the batch dimension. The result is for
            inputs of this size, because padding reaches other positions at another size.
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
        self._full = _masked(network, masks)
        self._recording = _recorded(network, inputs)
        self._biases = self._own_biases(network)
        self.notes: tuple[str, ...] = ()
        self._tensors: dict[str, Tensor] = {}
        if not (fault := self._shrink(network, masks, inputs)):
            self.network = resize(duplicate(network), self._tensors)
            self.masks = Masks(
                {name: self.cut(name, masks[name]) for name in masks}, masks.followers
            )
        else:
            self.kept = {
                name: [torch.arange(size) for size in tensor.shape]
                for name, tensor in self._full.items()
            }
            self.notes = (f"nothing was taken out: {fault}",)
            self.network, self.masks = _whole(network, masks), masks

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
        small = dict(self.network.named_parameters())
        rows: list[tuple[str, ...]] = [("parameter", "shape", "left")]
        for name, full in self._full.items():
            if full.dim() > 1 and name in small:
                rows.append(
                    (name, *("x".join(map(str, tensor.shape)) for tensor in (full, small[name])))
                )
        sizes = [
            sum(full.numel() for name, full in self._full.items() if name in small),
            sum(tensor.numel() for tensor in small.values()),
        ]
        rows.append(("all parameters", *(f"{size:,}" for size in sizes)))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}".rstrip()
            for row in rows
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join(
            [
                lines[0],
                rule,
                *lines[1:-1],
                rule,
                lines[-1],
                *(f"Kept: {note}." for note in self.notes),
            ]
        )

    def _shrink(self, network: nn.Module, masks: Masks, inputs: tuple[Tensor, ...]) -> str:
        """Decide what is kept, and repeat with fewer removals until the outputs agree.

        Returns:
            The reason why the network cannot be made smaller, "" if it was.
        """
        agreement = None
        whole: dict[str, str] = {}  # modules that cannot be smaller, with the reason
        fixed: set[str] = set()  # modules whose grouped convolutions cannot have fewer groups
        while True:
            self._groups: ChannelGroups = ChannelGroups(self._recording, whole, fixed)
            self._roots: Tensor = self._groups.roots()
            self._usages: list[ChannelUsage] = self._measure_usages(masks)
            if self._branching:
                return (
                    f"{type(network).__name__}.forward reads values of tensors that depend on its"
                    f" input ({_places(self._branching)}), and may take another branch on other"
                    " values"
                )
            self._kept_ids: Tensor = self._find_kept_ids()
            self.kept = self._indices()
            self.notes = self._explain(network, masks)
            self._tensors = self._smaller()
            if whole and all(
                self._tensors[name].shape == tensor.shape for name, tensor in self._full.items()
            ):
                return next(iter(whole.values()))
            try:
                agreement = agreement or Agreement(
                    partial(_whole, network, masks), inputs, training=self._training
                )
            except Unverifiable as error:
                return str(error)
            fault, where = self._fault(network, agreement)
            self.notes += (agreement.note,) if agreement.note else ()
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

    def _has_groups(self, module: str) -> bool:
        convolutions = (
            operation for operation in self._recording.operations if operation.name == "convolution"
        )
        return any(
            operation.module == module and operation.bound()["groups"] > 1
            for operation in convolutions
        )

    # -- parameters and constants

    @cached_property
    def _sources(self) -> dict[int, str]:
        """Names of parameters by the number of a value that is the parameter or its transpose."""
        sources = dict(self._recording.parameters)
        for operation in self._recording.operations:
            if (
                operation.name == "t"
                and operation.args[0].number in sources
                and operation.outputs[0] is not None
            ):
                sources[operation.outputs[0].number] = sources[operation.args[0].number]
        return sources

    def _own_biases(self, network: nn.Module) -> dict[str, str]:
        """Return the names of the biases into which constants can be folded, by the weight's name.

        These are the biases, existing or not, of layers whose weight is read exactly once.
        """
        if self._training:
            return {}
        operations = self._recording.operations
        reads = Counter(
            self._recording.parameters.get(x.number)
            for operation in operations
            for x in operation.reads
        )
        # A weight's transpose may be read more than once, or be transposed again.
        for number, source in self._sources.items():
            if number not in self._recording.parameters:
                reads[source] += (
                    sum(x.number == number for operation in operations for x in operation.reads) - 1
                )
        # A linear layer multiplies by its transposed weight. In a product with the weight itself,
        # rows are inputs and columns are units.
        products = [
            operation
            for operation in operations
            if operation.name != "t" and operation.name not in ("convolution",)
        ]
        used_untransposed = {
            self._recording.parameters.get(x.number)
            for operation in products
            for x in operation.reads
        }
        modules = dict(network.named_modules())
        biases = {}
        for name, count in reads.items():
            layer = (
                modules.get(name.removesuffix(".weight"))
                if name is not None and name.endswith(".weight")
                else None
            )
            supported = isinstance(layer, nn.Linear) or (
                isinstance(layer, nn.modules.conv._ConvNd) and not layer.transposed
            )
            if name is None or layer is None or not supported or count != 1:
                continue
            if name in used_untransposed:
                continue
            bias = name.removesuffix("weight") + "bias"
            if layer.bias is None or reads[bias] == 1:
                biases[name] = bias
        return biases

    def _measure_usages(self, masks: Masks) -> list[ChannelUsage]:
        contractions = {contraction.index: contraction for contraction in self._groups.contractions}
        usages: list[ChannelUsage] = []

        def measure(index: int, operation: Operation, tensor: Callable[[Value], Tensor]) -> None:
            if (contraction := contractions.get(index)) is not None:
                value = operation.outputs[0]
                assert value is not None
                output = self._recording.tensors[value.number]
                foldable = self._sources.get(contraction.weight.number) in self._biases
                usages.append(measure_usage(contraction, operation, output, tensor, foldable))

        self._branching = interpret(self._recording, self._replacements(masks), measure)
        return usages

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

    # -- kept slices

    def _find_kept_ids(self, needed_only: bool = False) -> Tensor:
        """Return which ids are kept, (num_ids,) bool.

        These are the ids on which the output depends and, unless ``needed_only``, the ids that are
        pinned for another reason.
        """
        kept = torch.zeros(self._groups.count, dtype=torch.bool)
        for ids, why in self._groups.pinned:
            if not needed_only or why == OUTPUT:
                kept[self._roots[ids]] = True
        before = -1
        while before != (before := int(kept.sum())):
            for usage in reversed(self._usages):
                rows = self._roots[usage.contraction.rows]
                columns = self._roots[usage.contraction.columns]
                kept[columns[usage.needed[kept[rows]].any(0)]] = True
        return kept

    def _indices(self) -> dict[str, list[Tensor]]:
        kept = self._kept_ids.clone()
        axes = {
            name: self._groups.axes[number] for number, name in self._recording.parameters.items()
        }
        for axis in (axis for of_one in axes.values() for axis in of_one):
            # A layer cannot have zero units, so one is kept even if nothing reads it.
            if axis is not None and len(axis) and not kept[self._roots[axis]].any():
                kept[self._roots[axis[0]]] = True
        return {
            name: [
                kept[self._roots[axis]].nonzero().flatten() for axis in of_one if axis is not None
            ]
            for name, of_one in axes.items()
        }

    def _smaller(self) -> dict[str, Tensor]:
        """Return the tensors of the smaller network, with constants folded into the biases."""
        tensors = dict(self._full)
        kept = dict(self.kept)
        for usage in self._usages:
            weight = self._sources.get(usage.contraction.weight.number)
            if weight not in self._biases:
                continue
            bias = self._biases[weight]
            removed = ~self._kept_ids[self._roots[usage.contraction.columns]]
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

    # -- notes

    def _explain(self, network: nn.Module, masks: Masks) -> tuple[str, ...]:
        of_layers = [self._roots[ids] for ids in self._unit_ids(network, masks)]
        units = torch.cat(of_layers) if of_layers else torch.zeros(0, dtype=torch.long)
        needed = self._find_kept_ids(needed_only=True)
        notes = []
        for why in dict.fromkeys(why for _, why in self._groups.pinned):
            pinned = torch.zeros_like(needed)
            for ids, reason in self._groups.pinned:
                if reason == why:
                    pinned[self._roots[ids]] = True
            if count := int((pinned & ~needed)[units].sum()):
                notes.append(f"{count:,} units whether they are needed or not ({why})")
        unfolded = torch.zeros_like(needed)
        for usage in self._usages:
            rows = self._roots[usage.contraction.rows]
            columns = self._roots[usage.contraction.columns]
            unfolded[columns[usage.constant & usage.needed[self._kept_ids[rows]].any(0)]] = True
        if count := int(unfolded[units].sum()):
            notes.append(
                f"{count:,} units that hold a constant which cannot be folded (padding makes it"
                " differ from place to place)"
            )
        return (*notes, *sorted(self._groups.notes))

    def _unit_ids(self, network: nn.Module, masks: Masks) -> list[Tensor]:
        """Return the ids of each layer's units."""
        modules = dict(network.named_modules())
        numbers = {name: number for number, name in self._recording.parameters.items()}
        unit_ids = []
        for name in masks.weights:
            transposed = isinstance(
                modules.get(name.removesuffix(".weight")), nn.modules.conv._ConvTransposeNd
            )
            axis = self._groups.axes[numbers[name]][int(transposed)] if name in numbers else None
            unit_ids += [axis] if axis is not None else []
        return unit_ids

    # -- verification

    def _fault(self, network: nn.Module, agreement: Agreement) -> tuple[str, str | None]:
        """Verify the smaller network.

        Returns:
            The reason why it is not usable, "" if it is, and the name of the module whose forward
            pass raises an error, ``None`` if none does.
        """
        # Before resizing, since the new tensors are in double precision.
        small = agreement.widened(duplicate(network))
        running: list[str] = []
        for name, module in small.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: running.append(name))
            module.register_forward_hook(lambda *_: (running.pop(), None)[1])
        try:
            where = agreement.difference(resize(small, self._tensors))
        except Opaque:
            raise
        except Exception as error:  # a forward may raise anything
            module = small.get_submodule(running[-1] if running else "")
            return (
                f"with smaller layers, {type(module).__name__}.forward fails ({first_line(error)})",
                running[-1] if running else "",
            )
        if where:
            why = (
                "it uses units there that evaluation does without"
                if "train" in where
                else "its forward depends on their sizes"
            )
            return (
                f"{type(network).__name__} with smaller layers gives something else ({where});"
                f" {why}",
                None,
            )
        return "", None


def _recorded(network: nn.Module, inputs: tuple[Tensor, ...]) -> Graph:
    """Return the traced graph of a network.

    Raises:
        ValueError: If the forward pass has an operation that prevents compaction.
    """
    conversions = Conversions()
    copied = duplicate(network)  # a forward pass may set attributes
    try:
        with conversions:
            recording = trace(copied, inputs)
    except RuntimeError as error:
        if isinstance(error, NotImplementedError):
            raise ValueError(
                f"{type(network).__name__}.forward has an operation that cannot be recorded"
                f" ({first_line(error)})"
            ) from error
        if not conversions.called:
            raise
        raise ValueError(_converts(network, conversions)) from error
    if conversions.called:
        raise ValueError(_converts(network, conversions))
    if recording.opaque:
        raise Opaque(recording.opaque, "compaction")
    if any(tensor.is_meta for tensor in recording.tensors):
        raise ValueError(
            f"{type(network).__name__}.forward computes with tensors on the meta device"
            " (forward-mode derivatives make such), which have no values and cannot be compacted;"
            " compute without them, or leave the network whole"
        )
    if (
        other := next((x for x in recording.tensors if x.layout != torch.strided), None)
    ) is not None:
        raise ValueError(
            f"{type(network).__name__}.forward computes with tensors of layout {other.layout},"
            " which compaction cannot follow; use dense tensors, or leave the network whole"
        )
    return recording


def _converts(network: nn.Module, conversions: Conversions) -> str:
    return (
        f"{type(network).__name__}.forward reads values of tensors by {conversions.called}, so it"
        " may take another branch on other values and cannot be compacted; compute with tensors"
        " throughout, or leave the network whole"
    )


def _places(operations: Sequence[Operation]) -> str:
    """Return a list of operations and the modules that called them, without repetitions."""
    return ", ".join(
        dict.fromkeys(f"{x.name} in {x.module}" if x.module else x.name for x in operations)
    )


def _whole(network: nn.Module, masks: Masks) -> nn.Module:
    """Return a copy of the network with pruned weights at zero."""
    whole = duplicate(network)
    masks.apply(whole)
    return whole


def _masked(network: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Return parameters and buffers in double precision, with pruned weights at zero, by name."""
    named = (*network.named_parameters(), *network.named_buffers())
    tensors = {
        name: tensor.detach().to(
            torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True
        )
        for name, tensor in named
    }
    for name, mask in masks.items():
        tensors[name].masked_fill_(~mask.to(tensors[name].device), 0)
    return tensors
