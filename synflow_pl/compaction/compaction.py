"""Compaction: the smaller network that does what a pruned one does.

A unit is taken out if it cannot change the output: nothing living reads it, or what it holds is a constant that folds exactly into the
biases of what does. Decided backwards from the output, for all coupled slices at once (:mod:`synflow_pl.compaction.coupling`): a kept
row keeps every column that matters to it, and with the column all that goes with it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from synflow_pl.compaction.constants import replay, varying
from synflow_pl.compaction.coupling import OUTPUT, Coupling
from synflow_pl.compaction.reading import Reading, read
from synflow_pl.compaction.resize import resize
from synflow_pl.flow import evaluating, example_of, record
from synflow_pl.flow.recording import Operation
from synflow_pl.masks import Masks

__all__ = ["Compaction", "compact"]

EXACT = 1e-9
"""Largest difference that is put down to rounding in double precision, of the largest output."""


def compact(
    network: nn.Module,
    masks: Masks,
    example_input: Tensor | tuple[Tensor, ...] | None = None,
    *,
    input_shape: Sequence[int] | None = None,
) -> nn.Module:
    """The pruned network without the units that cannot change its output: the same classes with smaller layers, in eval mode the same
    function. What was taken out, and why the rest was not, is told by :class:`Compaction`.

    Args:
        network: left as it is; what its masks remove counts as zero.
        masks: of the network.
        example_input: a tensor or a tuple of them with the batch dimension. The result is for inputs of this size: at another one,
            constants may have other borders.
        input_shape: instead of it, (C, H, W), for networks with one input.

    Returns:
        A new network, where the old one is.

    Raises:
        ValueError: if the masks are not the network's, or neither input is given.
    """
    return Compaction(network, masks, example_of(network, input_shape, example_input)).network


class Compaction:
    """What can be taken out of a pruned network, and what is left.

    Args:
        network: left as it is; what its masks remove counts as zero.
        masks: of the network.
        inputs: as :func:`synflow_pl.flow.example_of` gives them.
        training: the smaller network is to be trained: no weight, shift or statistic counts as constant then, but what the masks hold
            at zero, and nothing is folded.

    Attributes:
        network: the smaller network, or a copy of the whole one where something stood against it.
        masks: of what is left.
        kept: by parameter or buffer name, for each dimension the indices that are left.
        notes: in whole sentences without a full stop, what could not be taken out and why.
    """

    def __init__(self, network: nn.Module, masks: Masks, inputs: tuple[Tensor, ...], *, training: bool = False) -> None:
        masks.parameters(network)
        self._training = training
        self._full = _masked(network, masks)
        self._recording = record(network, inputs)
        self._biases = self._own_biases(network)
        whole: dict[str, str] = {}  # modules that cannot be smaller, with the reason
        while True:
            self._units = Coupling(self._recording, whole)
            self._roots = self._units.roots()
            self._readings = self._read(masks)
            self._alive = self._keep()
            self.kept = self._indices()
            self.notes = self._explain(network, masks)
            smaller = self._smaller()
            fault, where = self._fault(network, masks, inputs, smaller)
            if fault is None or not where or where in whole:
                break
            whole[where] = fault
        self.network = resize(copy.deepcopy(network), smaller)
        self.masks = Masks({name: self.cut(name, masks[name]) for name in masks}, masks.followers)
        if fault is not None:
            self.kept = {name: [torch.arange(size) for size in tensor.shape] for name, tensor in self._full.items()}
            self.notes = (f"nothing was taken out: {fault}",)
            self.network, self.masks = copy.deepcopy(network), masks
            masks.apply(self.network)

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """What is left of a tensor in the shape of the parameter or buffer ``name``."""
        for dim, indices in enumerate(self.kept[name]):
            tensor = tensor.index_select(dim, indices.to(tensor.device))
        return tensor

    def table(self) -> str:
        """Each layer's weight before and after, as plain text, and below what was not taken out and why."""
        small = dict(self.network.named_parameters())
        rows: list[tuple[str, ...]] = [("parameter", "shape", "left")]
        for name, full in self._full.items():
            if full.dim() > 1 and name in small:
                rows.append((name, *("x".join(map(str, tensor.shape)) for tensor in (full, small[name]))))
        sizes = [
            sum(full.numel() for name, full in self._full.items() if name in small),
            sum(tensor.numel() for tensor in small.values()),
        ]
        rows.append(("all parameters", *(f"{size:,}" for size in sizes)))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}".rstrip() for row in rows]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], *(f"Kept: {note}." for note in self.notes)])

    # -- what is known

    @cached_property
    def _sources(self) -> dict[int, str]:
        """By value number, the parameter that a value is, as it is or transposed."""
        found = dict(self._recording.parameters)
        for operation in self._recording.operations:
            if operation.name == "t" and operation.args[0].number in found and operation.outputs[0] is not None:
                found[operation.outputs[0].number] = found[operation.args[0].number]
        return found

    def _own_biases(self, network: nn.Module) -> dict[str, str]:
        """By the name of a weight that one layer reads once, its bias, there or not: where constants can be folded into."""
        if self._training:
            return {}
        reads = Counter(self._recording.parameters.get(x.number) for operation in self._recording.operations for x in operation.reads)
        modules = dict(network.named_modules())
        found = {}
        for name, count in reads.items():
            layer = modules.get(name.removesuffix(".weight")) if name is not None and name.endswith(".weight") else None
            plain = isinstance(layer, nn.Linear) or (isinstance(layer, nn.modules.conv._ConvNd) and not layer.transposed)
            if name is None or layer is None or not plain or count != 1:
                continue
            bias = name.removesuffix("weight") + "bias"
            if layer.bias is None or reads[bias] == 1:
                found[name] = bias
        return found

    def _read(self, masks: Masks) -> list[Reading]:
        at = {contraction.index: contraction for contraction in self._units.contractions}
        readings: list[Reading] = []

        def watch(index: int, operation: Operation, tensor: object) -> None:
            if (found := at.get(index)) is not None:
                made = operation.outputs[0]
                assert made is not None
                foldable = self._sources.get(found.weight.number) in self._biases
                readings.append(read(found, operation, self._recording.tensors[made.number], tensor, foldable))  # type: ignore[arg-type]

        replay(self._recording, self._given(masks), watch)
        return readings

    def _given(self, masks: Masks) -> dict[int, Tensor]:
        """NaN for what varies: the input, and in training all that is trained or gathered."""
        given = {value.number: varying(self._recording.tensors[value.number]) for value in self._recording.inputs}
        for number, name in self._recording.parameters.items():
            tensor = self._full[name]
            if self._training and tensor.is_floating_point():
                tensor = varying(tensor)
                if name in masks:
                    tensor = tensor.masked_fill(~masks[name].to(tensor.device), 0)
            given[number] = tensor
        return given

    # -- what is kept

    def _keep(self, structure_alone: bool = False) -> Tensor:
        """(numbers,) bool: what the output depends on, and what is pinned for another reason unless ``structure_alone``."""
        alive = torch.zeros(self._units.count, dtype=torch.bool)
        for numbers, why in self._units.pinned:
            if not structure_alone or why == OUTPUT:
                alive[self._roots[numbers]] = True
        before = -1
        while before != (before := int(alive.sum())):
            for reading in reversed(self._readings):
                rows, columns = (self._roots[numbers] for numbers in (reading.contraction.rows, reading.contraction.columns))
                alive[columns[reading.matters[alive[rows]].any(0)]] = True
        return alive

    def _indices(self) -> dict[str, list[Tensor]]:
        present = self._alive.clone()
        axes = {name: self._units.axes[number] for number, name in self._recording.parameters.items()}
        for axis in (axis for of_one in axes.values() for axis in of_one):
            # No layer can have no units: one stays, though nothing reads it.
            if axis is not None and len(axis) and not present[self._roots[axis]].any():
                present[self._roots[axis[0]]] = True
        return {
            name: [present[self._roots[axis]].nonzero().flatten() for axis in of_one if axis is not None]
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
            adds = reading.adds[:, gone].sum(1).to(self._full[weight].device)
            # A column that stays as its layer's last gives nothing any more: its constant is in the bias.
            tensors[weight] = tensors[weight].index_fill(1, gone.nonzero().flatten().to(adds.device), 0)
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
            rows, columns = (self._roots[numbers] for numbers in (reading.contraction.rows, reading.contraction.columns))
            unfolded[columns[reading.constant & reading.matters[self._alive[rows]].any(0)]] = True
        if count := int(unfolded[everything].sum()):
            notes.append(f"{count:,} units that hold a constant which cannot be folded (padding makes it differ from place to place)")
        return (*notes, *sorted(self._units.notes))

    def _of_units(self, network: nn.Module, masks: Masks) -> list[Tensor]:
        """The numbers of each layer's units."""
        modules = dict(network.named_modules())
        numbers = {name: number for number, name in self._recording.parameters.items()}
        found = []
        for name in masks.weights:
            transposed = isinstance(modules.get(name.removesuffix(".weight")), nn.modules.conv._ConvTransposeNd)
            axis = self._units.axes[numbers[name]][int(transposed)] if name in numbers else None
            found += [axis] if axis is not None else []
        return found

    # -- whether it is so

    def _fault(
        self, network: nn.Module, masks: Masks, inputs: tuple[Tensor, ...], smaller: dict[str, Tensor]
    ) -> tuple[str | None, str]:
        """Run both on noise in double precision: what is wrong with the smaller one, if anything, and in which module."""
        with torch.random.fork_rng():
            noise = tuple(torch.cat([_noise(tensor), _noise(tensor)]) for tensor in inputs)
        whole = copy.deepcopy(network).double()
        masks.apply(whole)
        try:
            truth = _outputs(whole, noise)
        except RuntimeError as error:
            return f"in double precision, {type(network).__name__}.forward fails ({str(error).splitlines()[0]})", ""
        del whole  # two large networks at a time are enough
        small = resize(copy.deepcopy(network).double(), smaller)
        running: list[str] = []
        for name, module in small.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: running.append(name))
            module.register_forward_hook(lambda *_: (running.pop(), None)[1])
        try:
            found = _outputs(small, noise)
            if self._training:
                with torch.random.fork_rng(), _double():
                    small.train()(*noise)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            where = running[-1] if running else ""
            what = type(small.get_submodule(where)).__name__
            return f"with smaller layers, {what}.forward fails ({str(error).splitlines()[0]})", where
        for a, b in zip(truth, found, strict=True):
            if a.shape != b.shape or not float((a - b).abs().max()) <= EXACT * float(a.abs().max()):
                return f"{type(network).__name__} with smaller layers gives something else; its forward depends on their sizes", ""
        return None, ""


def _masked(network: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Parameters and buffers by name in double precision, removed weights zero."""
    named = (*network.named_parameters(), *network.named_buffers())
    found = {
        name: tensor.detach().to(torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True) for name, tensor in named
    }
    for name, mask in masks.items():
        found[name].masked_fill_(~mask.to(found[name].device), 0)
    return found


def _noise(tensor: Tensor) -> Tensor:
    """Another input of that kind; whole numbers in another order, since what they mean is not known."""
    if tensor.is_floating_point():
        return torch.randn_like(tensor, dtype=torch.float64)
    return tensor.flatten()[torch.randperm(tensor.numel(), device=tensor.device)].view_as(tensor)


@contextmanager
def _double() -> Iterator[None]:
    """What is made of whole numbers is in double precision inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _outputs(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with evaluating(network), torch.no_grad(), _double():
        return [leaf for leaf in tree_leaves(network(*inputs)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
