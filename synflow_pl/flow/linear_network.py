"""LinearNetwork: the positive linear network that synaptic flow is computed on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from synflow_pl.flow.fallback import fallback_errors, fallback_notes
from synflow_pl.flow.meetings import Meeting
from synflow_pl.flow.node import Node, fill
from synflow_pl.flow.node_analysis import acting_weights, last_uses, needed
from synflow_pl.flow.rescaling import cuts, power_of_two_scale, scoring_dtype
from synflow_pl.flow.weights import Block, magnitude, separate_memory, through_block
from synflow_pl.graph.operation import Value, values_in

__all__ = ["LinearNetwork"]


class LinearNetwork:
    """A positive linear network, made by :func:`synflow_pl.flow.linearise`.

    Attributes:
        weights: Names of the parameters that the flow passes through.
        compressible: Names of those weights that :meth:`flow` accepts as a :class:`Block`.
        max_layers_between_cuts: Largest number of weight layers between two cuts (see
            :mod:`synflow_pl.flow.rescaling`).
        dtype: Precision to score in: the precision of the network, but at least float32, if its
            cuts keep float32 in range, else float64.
        gated: Whether one signal gates another somewhere, so that some weights may carry no flow by
            construction.
        separating: Names of the weights that every path from input to output passes exactly once,
            such as the layers of a chain.
        all_zero: Names of multiplicative parameters that are zero throughout and count as ones.
        nonzero_after_masking: Names of the weights of which a pruned entry is not zero in the
            kernel that is computed from them (standardised weights).
        partial: Whether the network also returns booleans or integers computed from flow, which are
            not outputs of the linear network.
        output_shapes: Shape of each output.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from synflow_pl.flow import linearise
        >>> network = nn.Linear(2, 1)
        >>> linear_network = linearise(network, (torch.ones(1, 2),))
        >>> linear_network.flow({"weight": torch.tensor([[1.0, 2.0]])})
        tensor(3.)
    """

    nonzero_after_masking: frozenset[str] = frozenset()
    partial: bool = False
    output_shapes: tuple[torch.Size, ...] = ()

    def __init__(
        self,
        nodes: list[Node],
        inputs: dict[int, Tensor],
        parameters: dict[int, Tensor],
        names: dict[int, str],
        constants: dict[int, Tensor],
        gains: Collection[int],
        all_zero: Mapping[int, Collection[str]],
        outputs: tuple[int, ...],
        flow: Collection[int],
        gated: bool,
    ) -> None:
        self._nodes = needed(nodes, outputs)
        self._outputs = outputs
        read = {number for node in self._nodes for number in node.operands}
        self._names = {number: name for number, name in names.items() if number in read}
        self._parameters = {number: parameters[number] for number in self._names}
        self._constants = {
            number: tensor for number, tensor in (inputs | constants).items() if number in read
        }
        self._gains = read.intersection(gains)
        self._sources = read.intersection(inputs)
        self.gated = gated
        self.weights = frozenset(self._names.values())
        self.compressible = frozenset(
            node.weight for node in self._nodes if node.weight is not None
        )
        zero = [
            name for number, name in self._names.items() if not bool(self._parameters[number].any())
        ]
        self.all_zero = frozenset(zero).union(
            *(all_zero[number] for number in self._gains if number in all_zero)
        )
        self._units = {name: parameters[number].shape[0] for number, name in self._names.items()}
        self._cut_before, self.max_layers_between_cuts, crossed = cuts(
            self._nodes, set(flow), inputs.keys() & read, outputs
        )
        self._flow = frozenset(flow)
        self._weights_of = acting_weights(self._nodes, self._flow, self._names)
        readers = Counter(name for names in self._weights_of.values() for name in names)
        alone = {
            names[0]
            for names in (self.weights_of(self._nodes[index]) for index in crossed)
            if len(names) == 1
        }
        self.separating = frozenset(name for name in alone if readers[name] == 1)
        own = next(iter(self._parameters.values())).dtype if self._parameters else torch.float32
        self.dtype = scoring_dtype(own, self.max_layers_between_cuts)
        self._last_use = last_uses(self._nodes, outputs)
        # Which arguments of a node contain values and are filled in at each evaluation.
        self._open = [
            [any(True for _ in values_in(item)) for item in node.args] for node in self._nodes
        ]

    def flow(
        self,
        weights: Mapping[str, Tensor],
        blocks: Mapping[str, Block] = MappingProxyType({}),
        *,
        gains: bool = True,
        watch: Callable[[Node | None, Sequence[Any]], None] | None = None,
        compute: Callable[[Callable[..., Any], Node, Sequence[Any]], Any] | None = None,
        readout: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Return R up to a power of two: the sum of the outputs for an input of ones.

        Args:
            weights: Non-negative tensors by parameter name. A weight of the linear network that is
                not among them counts with its own magnitude.
            blocks: Blocks of those weights that are cut down to their active units and inputs.
            gains: Whether gains, and weights that are not given, have their values; ``False``
                replaces them by ones, so that only the structure remains.
            watch: Function called with each node and its arguments, and at each cut with ``None``
                and the list of the value and its divisor.
            compute: Function called with each node's function, the node and its arguments, which
                returns the result of the node.
            readout: Non-negative tensors that the outputs are multiplied by before they are summed,
                in the shapes of ``self.output_shapes``; ``None`` is ones.

        Returns:
            A scalar, exactly zero if no path from input to output is left (or if flow underflows).
        """
        dtype = next(iter(weights.values())).dtype if weights else self.dtype
        values: dict[int, Any] = {}
        for number, constant in self._constants.items():
            structural = not gains and number in self._gains
            values[number] = (
                torch.ones_like(constant, dtype=dtype) if structural else constant.to(dtype)
            )
        for number, name in self._names.items():
            if name in weights:
                values[number] = weights[name]
            else:
                fixed = self._parameters[number].to(dtype)
                values[number] = magnitude(fixed) if gains else torch.ones_like(fixed)
        for index, node in enumerate(self._nodes):
            if index in self._cut_before:
                number = self._cut_before[index]
                power = power_of_two_scale(values[number])
                values[number] = values[number] / power
                if watch is not None:
                    watch(None, [values[number], power])
            arguments = [
                fill(item, values) if open_ else item
                for item, open_ in zip(node.args, self._open[index], strict=True)
            ]
            if watch is not None:
                watch(node, arguments)
            result: Any
            kernel = node.function
            if node.weight is not None and node.weight in blocks:
                result = through_block(
                    kernel, arguments, blocks[node.weight], self._units[node.weight]
                )
            else:
                function = partial(
                    kernel, **{key: fill(item, values) for key, item in node.kwargs.items()}
                )
                result = (
                    function(*arguments) if compute is None else compute(function, node, arguments)
                )
            if isinstance(result, (tuple, list)):
                values.update(zip(node.outputs, result, strict=True))
            else:
                values[node.outputs[0]] = result
            for number in self._last_use.get(index, ()):
                del values[number]
        zero = torch.zeros((), dtype=dtype, device=next(iter(self._constants.values())).device)
        outputs = [values[number] for number in self._outputs]
        if readout is not None:
            outputs = [value * by for value, by in zip(outputs, readout, strict=True)]
        return sum((value.sum() for value in outputs), start=zero)

    def gradients(
        self,
        weights: Mapping[str, Tensor],
        blocks: Mapping[str, Block] = MappingProxyType({}),
        *,
        gains: bool = True,
        compute: Callable[[Callable[..., Any], Node, Sequence[Any]], Any] | None = None,
    ) -> dict[str, Tensor]:
        """Return dR/dw for each of ``weights``, up to one power of two that all of them share.

        Multiplied by w, this is synaptic saliency (Tanaka et al. 2020, Equations 1 and 2).

        Args:
            weights: Non-negative tensors by parameter name, each one of ``self.weights``.
            blocks: Blocks of those weights that are cut down to their active units and inputs.
            gains: See :meth:`flow`.
            compute: See :meth:`flow`.

        Returns:
            Non-negative tensors in the weights' shapes, in any memory layout, that share no memory.
        """
        return self.flow_and_gradients(weights, blocks, gains=gains, compute=compute)[1]

    def flow_and_gradients(
        self,
        weights: Mapping[str, Tensor],
        blocks: Mapping[str, Block] = MappingProxyType({}),
        *,
        gains: bool = True,
        watch: Callable[[Node | None, Sequence[Any]], None] | None = None,
        compute: Callable[[Callable[..., Any], Node, Sequence[Any]], Any] | None = None,
        readout: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return R and dR/dw for each of ``weights``, up to one power of two that all share.

        Args:
            weights: See :meth:`gradients`.
            blocks: See :meth:`gradients`.
            gains: See :meth:`flow`.
            watch: See :meth:`flow`.
            compute: See :meth:`flow`.
            readout: See :meth:`flow`.

        Returns:
            R, a scalar, and the gradients by name, as :meth:`gradients` returns them.
        """
        options: dict[str, Any] = {
            "gains": gains,
            "watch": watch,
            "compute": compute,
            "readout": readout,
        }
        if not weights:
            with torch.no_grad():
                return self.flow({}, **options), {}
        variables = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        with torch.enable_grad():
            total = self.flow(variables, blocks, **options)
        gradients = torch.autograd.grad(total, list(variables.values()), materialize_grads=True)
        return total.detach(), dict(zip(variables, separate_memory(gradients), strict=True))

    def unknown(self, weights: Mapping[str, Tensor]) -> dict[str, float | None]:
        """Return the operations without a rule, with the error of their replacement on this flow.

        Args:
            weights: See :meth:`flow`.

        Returns:
            The largest :meth:`Fallback.relative_error` of all calls of an operation, by its name;
            ``None`` where it is undefined.
        """
        return fallback_errors(self._nodes, partial(self.flow, weights))

    def weights_of(self, node: Node) -> tuple[str, ...]:
        """Return the names of the weights that act on the signal in a node.

        There are none unless the node is a contraction.
        """
        return self._weights_of.get(node.outputs[0], ())

    @property
    def meetings(self) -> list[Meeting]:
        """Return the functions of the nodes in which two signals meet, with open gates."""
        return [node.function for node in self._nodes if isinstance(node.function, Meeting)]

    def reads_flow(self, node: Node) -> bool:
        """Return whether a node reads a value that carries flow."""
        return not self._flow.isdisjoint(node.operands)

    def receives_flow(self, node: Node, arguments: Sequence[Any]) -> bool:
        """Return whether a node receives nonzero flow, given its arguments."""
        given = zip(node.args, arguments, strict=True)
        return any(
            bool(item.any())
            for value, item in given
            if isinstance(value, Value) and value.number in self._flow
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Return notes for a report: operations without a rule, weights with unusual zeros."""
        notes = fallback_notes(self.unknown({}))
        if self.nonzero_after_masking:
            names = ", ".join(sorted(self.nonzero_after_masking))
            notes = (
                *notes,
                "removed weights are not zero in the kernel that is computed from them"
                f" (standardised weights): {names}",
            )
        return notes
