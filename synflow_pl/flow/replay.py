"""Replay: the values that a recorded network computes with other parameters, and the weights that
it computes from others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from synflow_pl.graph.trace import Graph, Operation, Value, is_number

__all__ = ["Replay", "computed_weights", "draws", "uneven_weights"]

# Operations that move the entries of a weight or change their precision, so that their zeros are
# those of the weight.
_MOVES = frozenset(
    """
    t transpose permute view _unsafe_view view_copy reshape _reshape_alias slice narrow select split split_with_sizes unbind unsqueeze
    squeeze expand alias detach clone _to_copy contiguous movedim repeat flip lift_fresh
    """.split()
)


class Replay:
    """Computes chosen values of a recording anew, with other parameters.

    What has a shape that depends on values stays as it was recorded. Of the recorded tensors only
    those are kept that a replay starts from.

    Args:
        recording: The recording of the network.
        wanted: numbers of the values to compute.
    """

    def __init__(self, recording: Graph, wanted: Collection[int]) -> None:
        self._wanted = frozenset(wanted)
        needed = set(wanted)
        self._operations: list[Operation] = []
        for operation in reversed(recording.operations):
            made = {output.number for output in operation.outputs if output is not None}
            if made & needed and not _fixed(operation):
                needed.update(value.number for value in operation.reads)
                self._operations.append(operation)
        self._operations.reverse()
        made = {
            output.number
            for operation in self._operations
            for output in operation.outputs
            if output is not None
        }
        self._given = {number: recording.tensors[number] for number in needed - made}
        self._names = {
            number: name for number, name in recording.parameters.items() if number in self._given
        }

    @property
    def names(self) -> frozenset[str]:
        """Names of the parameters and buffers that the values depend on."""
        return frozenset(self._names.values())

    @torch.no_grad()
    def values(self, parameters: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """The values asked for, by number.

        Args:
            parameters: by name, what stands in for a parameter or buffer; the others are as they
                were recorded.
        """
        with torch.random.fork_rng(devices=[]):
            return self._run(parameters)

    def _run(self, parameters: Mapping[str, Tensor]) -> dict[int, Tensor]:
        values = dict(self._given)
        for number, name in self._names.items():
            if name in parameters:
                values[number] = parameters[name].to(values[number])
        last = {
            value.number: index
            for index, operation in enumerate(self._operations)
            for value in operation.reads
        }
        for index, operation in enumerate(self._operations):
            args, kwargs = tree_map(
                lambda item: values[item.number] if isinstance(item, Value) else item,
                (operation.args, operation.kwargs),
                is_leaf=lambda item: isinstance(item, Value),
            )
            result = operation.target(*args, **kwargs)
            results = result if isinstance(result, (tuple, list)) else (result,)
            for output, tensor in zip(operation.outputs, results, strict=True):
                if output is not None:
                    values[output.number] = tensor
            for number in {value.number for value in operation.reads} - self._wanted:
                if last[number] == index:
                    del values[number]
        return {number: values[number] for number in self._wanted}


def _fixed(operation: Operation) -> bool:
    """Return whether an operation's outputs stay as they were recorded."""
    tags = operation.target.tags
    return torch.Tag.dynamic_output_shape in tags or operation.target._schema.is_mutable


def computed_weights(recording: Graph, weights: Collection[str]) -> dict[int, tuple[str, ...]]:
    """By number, the values that are computed from weights alone, by more than moving their
    entries, and that act on a signal; each with the names of these weights.

    Args:
        recording: The recording of the network.
        weights: names of the prunable parameters.
    """
    signals = {value.number for value in recording.inputs}
    made_of: dict[int, tuple[str, ...]] = {
        number: (name,) for number, name in recording.parameters.items() if name in weights
    }
    computed: set[int] = set()
    acting: dict[int, tuple[str, ...]] = {}
    for operation in recording.operations:
        read = [value.number for value in operation.reads]
        if any(number in signals for number in read):
            signals.update(output.number for output in operation.outputs if output is not None)
            acting.update(
                (number, made_of[number])
                for number in read
                if number in computed and is_number(recording.tensors[number])
            )
            continue
        if not any(number in made_of for number in read):
            continue
        names = tuple(dict.fromkeys(name for number in read for name in made_of.get(number, ())))
        more = operation.name not in _MOVES or any(number in computed for number in read)
        for output in operation.outputs:
            if output is not None and output.number not in made_of:
                made_of[output.number] = names
                if more:
                    computed.add(output.number)
    return acting


def draws(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters with other numbers in place of zeros, so that a zero that a replay computes
    comes of a mask.
    """
    generator = torch.Generator().manual_seed(0)
    drawn: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        value = parameter.detach()
        if not bool((value == 0).any()):
            drawn[name] = value
            continue
        scale = float(value.abs().float().mean()) or 1.0
        other = (0.5 + torch.rand(value.shape, generator=generator)) * scale
        drawn[name] = torch.where(value == 0, other.to(value), value)
    return drawn


def uneven_weights(
    recording: Graph, weights: Collection[str], parameters: Mapping[str, Tensor]
) -> frozenset[str]:
    """Names of the weights of which a removed entry is no zero in what acts on the signal: weights
    that are standardised, say, of which a mean is taken off.

    Args:
        recording: The recording of the network.
        weights: names of the prunable parameters.
        parameters: all parameters, by name.
    """
    acting = computed_weights(recording, weights)
    if not acting:
        return frozenset()
    replay = Replay(recording, acting)
    # A weight that acts through an operation that cannot be computed anew (an index, say) is not
    # judged.
    masked = {name for names in acting.values() for name in names} & replay.names
    # Half of the entries, whichever way entries are grouped.
    checks = {name: _checkerboard(parameters[name]) for name in masked}
    drawn = draws({name: parameters[name] for name in replay.names if name in parameters})
    values = replay.values(drawn | {name: drawn[name] * check for name, check in checks.items()})
    found: set[str] = set()
    for number, names in acting.items():
        value = values[number]
        if not masked.issuperset(names) or value.numel() != sum(
            parameters[name].numel() for name in names
        ):
            continue
        removed = sum(int((checks[name] == 0).count_nonzero()) for name in names)
        if int((value == 0).count_nonzero()) < removed:
            found.update(names)
    return frozenset(found)


def _checkerboard(weight: Tensor) -> Tensor:
    rows = torch.arange(weight.shape[0], device=weight.device)
    rest = torch.arange(weight[0].numel(), device=weight.device)
    return ((rows[:, None] + rest) % 2 == 0).to(weight.dtype).view(weight.shape)
