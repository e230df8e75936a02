"""Compaction: the smaller network that does what a pruned one does.

A unit is taken out if it cannot change the output: nothing living reads it, or what it holds is a
constant that folds exactly into the biases of what does. Decided backwards from the output, for all
coupled slices at once (:mod:`synflow_pl.compaction.channel_groups`): a kept row keeps every column
that matters to it, and with the column all that goes with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from synflow_pl.compaction.agreement import Agreement, Unverifiable, duplicate, first_line
from synflow_pl.compaction.branches import Conversions
from synflow_pl.compaction.channel_groups import OUTPUT, ChannelGroups
from synflow_pl.compaction.channel_usage import ChannelUsage, read
from synflow_pl.compaction.constant_propagation import interpret, unknown
from synflow_pl.compaction.resize import resize
from synflow_pl.flow import example_of, trace
from synflow_pl.graph.outputs import Opaque
from synflow_pl.graph.trace import Graph, Operation
from synflow_pl.masks import Masks

__all__ = ["Compaction", "compact"]


def compact(
    network: nn.Module,
    masks: Masks,
    example_input: Tensor | tuple[Tensor, ...] | None = None,
    *,
    input_shape: Sequence[int] | None = None,
) -> nn.Module:
    """The pruned network without the units that cannot change its output: the same classes with
    smaller layers, in eval mode the same function. What was taken out, and why the rest was not, is
    told by :class:`Compaction`.

    Args:
        network: left as it is; what its masks remove counts as zero.
        masks: of the network.
        example_input: a tensor or a tuple of them with the batch dimension. The result is for
            inputs of this size: at another one, constants may have other borders.
        input_shape: instead of it, (C, H, W), for networks with one input.

    Returns:
        A new network, where the old one is.

    Raises:
        ValueError: if the masks are not the network's, or neither input is given, or an output
            cannot be looked into, or the forward pass converts tensors to lists or arrays or cannot
            be recorded.
    """
    return Compaction(network, masks, example_of(network, input_shape, example_input)).network


class Compaction:
    """What can be taken out of a pruned network, and what is left.

    Args:
        network: left as it is; what its masks remove counts as zero.
        masks: of the network.
        inputs: as :func:`synflow_pl.flow.example_of` gives them.
        training: the smaller network is to be trained, so that its outputs are compared in train
            mode as well: no weight, shift or statistic counts as constant then, but what the masks
            hold at zero, and nothing is folded.

    Attributes:
        network: the smaller network, or a copy of the whole one where something stood against it.
        masks: of what is left.
        kept: by parameter or buffer name, for each dimension the indices that are left.
        notes: in whole sentences without a full stop, what could not be taken out and why.
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
        """What is left of a tensor in the shape of the parameter or buffer ``name``."""
        for dim, indices in enumerate(self.kept[name]):
            tensor = tensor.index_select(dim, indices.to(tensor.device))
        return tensor

    def table(self) -> str:
        """Each layer's weight before and after, as plain text, and below what was not taken out and
        why.
        """
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
        """Decide what is kept, until the smaller network is verified: what stands against it, if
        anything does.
        """
        agreement = None
        whole: dict[str, str] = {}  # modules that cannot be smaller, with the reason
        fixed: set[str] = set()  # modules whose grouped convolutions cannot have fewer groups
        while True:
            self._units: ChannelGroups = ChannelGroups(self._recording, whole, fixed)
            self._roots: Tensor = self._units.roots()
            self._readings: list[ChannelUsage] = self._read(masks)
            if self._branching:
                return (
                    f"{type(network).__name__}.forward reads values of tensors that depend on its input"
                    f" ({_places(self._branching)}), and may take another branch on other values"
                )
            self._alive: Tensor = self._keep()
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
            while where in whole:  # the modules around it may depend on its size
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

    # -- what is known

    @cached_property
    def _sources(self) -> dict[int, str]:
        """By value number, the parameter that a value is, as it is or transposed."""
        found = dict(self._recording.parameters)
        for operation in self._recording.operations:
            if (
                operation.name == "t"
                and operation.args[0].number in found
                and operation.outputs[0] is not None
            ):
                found[operation.outputs[0].number] = found[operation.args[0].number]
        return found

    def _own_biases(self, network: nn.Module) -> dict[str, str]:
        """By the name of a weight that one layer reads once, its bias, there or not: where
        constants can be folded into.
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
        # A layer multiplies by its transposed weight; a product with the weight as it is has units
        # and inputs the other way round.
        products = [
            operation
            for operation in operations
            if operation.name != "t" and operation.name not in ("convolution",)
        ]
        turned = {
            self._recording.parameters.get(x.number)
            for operation in products
            for x in operation.reads
        }
        modules = dict(network.named_modules())
        found = {}
        for name, count in reads.items():
            layer = (
                modules.get(name.removesuffix(".weight"))
                if name is not None and name.endswith(".weight")
                else None
            )
            plain = isinstance(layer, nn.Linear) or (
                isinstance(layer, nn.modules.conv._ConvNd) and not layer.transposed
            )
            if name is None or layer is None or not plain or count != 1 or name in turned:
                continue
            bias = name.removesuffix("weight") + "bias"
            if layer.bias is None or reads[bias] == 1:
                found[name] = bias
        return found

    def _read(self, masks: Masks) -> list[ChannelUsage]:
        at = {contraction.index: contraction for contraction in self._units.contractions}
        readings: list[ChannelUsage] = []

        def watch(index: int, operation: Operation, tensor: object) -> None:
            if (found := at.get(index)) is not None:
                made = operation.outputs[0]
                assert made is not None
                foldable = self._sources.get(found.weight.number) in self._biases
                output = self._recording.tensors[made.number]
                readings.append(read(found, operation, output, tensor, foldable))  # type: ignore[arg-type]

        self._branching = interpret(self._recording, self._given(masks), watch)
        return readings

    def _given(self, masks: Masks) -> dict[int, Tensor]:
        """NaN for what varies: the input, and in training all that is trained or gathered."""
        given = {
            value.number: unknown(self._recording.tensors[value.number])
            for value in self._recording.inputs
        }
        for number, name in self._recording.parameters.items():
            tensor = self._full[name]
            if self._training and tensor.is_floating_point():
                tensor = unknown(tensor)
                if name in masks:
                    tensor = tensor.masked_fill(~masks[name].to(tensor.device), 0)
            given[number] = tensor
        return given

    # -- what is kept

    def _keep(self, structure_alone: bool = False) -> Tensor:
        """(numbers,) bool: what the output depends on, and what is pinned for another reason unless
        ``structure_alone``.
        """
        alive = torch.zeros(self._units.count, dtype=torch.bool)
        for numbers, why in self._units.pinned:
            if not structure_alone or why == OUTPUT:
                alive[self._roots[numbers]] = True
        before = -1
        while before != (before := int(alive.sum())):
            for reading in reversed(self._readings):
                rows, columns = (
                    self._roots[numbers]
                    for numbers in (reading.contraction.rows, reading.contraction.columns)
                )
                alive[columns[reading.needed[alive[rows]].any(0)]] = True
        return alive

    def _indices(self) -> dict[str, list[Tensor]]:
        present = self._alive.clone()
        axes = {
            name: self._units.axes[number] for number, name in self._recording.parameters.items()
        }
        for axis in (axis for of_one in axes.values() for axis in of_one):
            # No layer can have no units: one stays, though nothing reads it.
            if axis is not None and len(axis) and not present[self._roots[axis]].any():
                present[self._roots[axis[0]]] = True
        return {
            name: [
                present[self._roots[axis]].nonzero().flatten()
                for axis in of_one
                if axis is not None
            ]
            for name, of_one in axes.items()
        }

    def _smaller(self) -> dict[str, Tensor]:
        """The tensors of the smaller network, with what was folded into the biases."""
        tensors = dict(self._full)
        cuts = dict(self.kept)
        for reading in self._readings:
            weight = self._sources.get(reading.contraction.weight.number)
            if weight not in self._biases:
                continue
            bias = self._biases[weight]
            gone = ~self._alive[self._roots[reading.contraction.columns]]
            adds = reading.bias_term[:, gone].sum(1).to(self._full[weight].device)
            # A column that stays as its layer's last gives nothing any more: its constant is in the
            # bias.
            tensors[weight] = tensors[weight].index_fill(
                1, gone.nonzero().flatten().to(adds.device), 0
            )
            if bias in tensors:
                tensors[bias] = tensors[bias] + adds
            elif adds.any():
                tensors[bias] = adds
                cuts[bias] = self.kept[weight][:1]
        self.kept = cuts
        return {name: self.cut(name, tensor) for name, tensor in tensors.items()}

    # -- what is said

    def _explain(self, network: nn.Module, masks: Masks) -> tuple[str, ...]:
        units = [self._roots[numbers] for numbers in self._of_units(network, masks)]
        everything = torch.cat(units) if units else torch.zeros(0, dtype=torch.long)
        needed = self._keep(structure_alone=True)
        notes = []
        for why in dict.fromkeys(why for _, why in self._units.pinned):
            pinned = torch.zeros_like(needed)
            for numbers, reason in self._units.pinned:
                if reason == why:
                    pinned[self._roots[numbers]] = True
            if count := int((pinned & ~needed)[everything].sum()):
                notes.append(f"{count:,} units whether they are needed or not ({why})")
        unfolded = torch.zeros_like(needed)
        for reading in self._readings:
            rows, columns = (
                self._roots[numbers]
                for numbers in (reading.contraction.rows, reading.contraction.columns)
            )
            unfolded[columns[reading.constant & reading.needed[self._alive[rows]].any(0)]] = True
        if count := int(unfolded[everything].sum()):
            notes.append(
                f"{count:,} units that hold a constant which cannot be folded (padding makes it differ from place to place)"
            )
        return (*notes, *sorted(self._units.notes))

    def _of_units(self, network: nn.Module, masks: Masks) -> list[Tensor]:
        """The numbers of each layer's units."""
        modules = dict(network.named_modules())
        numbers = {name: number for number, name in self._recording.parameters.items()}
        found = []
        for name in masks.weights:
            transposed = isinstance(
                modules.get(name.removesuffix(".weight")), nn.modules.conv._ConvTransposeNd
            )
            axis = self._units.axes[numbers[name]][int(transposed)] if name in numbers else None
            found += [axis] if axis is not None else []
        return found

    # -- whether it is so

    def _fault(self, network: nn.Module, agreement: Agreement) -> tuple[str, str | None]:
        """Return what is wrong with the smaller network, "" if nothing is, and the module in which
        it fails.
        """
        small = agreement.widened(
            duplicate(network)
        )  # before it gets its tensors, which are in double precision
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
                f"{type(network).__name__} with smaller layers gives something else ({where}); {why}",
                None,
            )
        return "", None


def _recorded(network: nn.Module, inputs: tuple[Tensor, ...]) -> Graph:
    """Return the recording of a network.

    Raises:
        ValueError: If the network cannot be compacted for what its forward pass does.
    """
    conversions, copied = (
        Conversions(),
        duplicate(network),
    )  # a forward may keep what it computed as attributes
    try:
        with conversions:
            recording = trace(copied, inputs)
    except RuntimeError as error:
        if isinstance(error, NotImplementedError):
            raise ValueError(
                f"{type(network).__name__}.forward has an operation that cannot be recorded ({first_line(error)})"
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
            f"{type(network).__name__}.forward computes with tensors on the meta device (forward-mode derivatives make such), which"
            " have no values and cannot be compacted; compute without them, or leave the network whole"
        )
    if (
        other := next((x for x in recording.tensors if x.layout != torch.strided), None)
    ) is not None:
        raise ValueError(
            f"{type(network).__name__}.forward computes with tensors of layout {other.layout}, which compaction cannot follow; use"
            " dense tensors, or leave the network whole"
        )
    return recording


def _converts(network: nn.Module, conversions: Conversions) -> str:
    return (
        f"{type(network).__name__}.forward reads values of tensors by {conversions.called}, so it may take another branch on other"
        " values and cannot be compacted; compute with tensors throughout, or leave the network whole"
    )


def _places(operations: Sequence[Operation]) -> str:
    """Operations with the modules that called them, each once."""
    return ", ".join(
        dict.fromkeys(f"{x.name} in {x.module}" if x.module else x.name for x in operations)
    )


def _whole(network: nn.Module, masks: Masks) -> nn.Module:
    """A copy of the network with removed weights at zero."""
    whole = duplicate(network)
    masks.apply(whole)
    return whole


def _masked(network: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Parameters and buffers by name in double precision, removed weights zero."""
    named = (*network.named_parameters(), *network.named_buffers())
    found = {
        name: tensor.detach().to(
            torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True
        )
        for name, tensor in named
    }
    for name, mask in masks.items():
        found[name].masked_fill_(~mask.to(found[name].device), 0)
    return found
