"""Which values of a network are constants, that is, do not depend on its input.

The traced operations run again in double precision on an input of NaN. A result that is NaN may
depend on the input, and all other results are constants. Three cases need special treatment:

- A pruned weight reads nothing, but 0 * NaN is NaN. Products are therefore computed in two parts:
  which entries of the result are NaN, and the values of the others.
- Comparisons and indices do not propagate NaN. All results of an operation that reads one computed
  from a NaN count as unknown. So do all results of an operation without a rule that reads a NaN.
- Integers (token indices, for example) cannot be NaN. Integer inputs count as computed from a NaN.

With NaN in place of every trained weight as well, the remaining constants are constant throughout
training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from synflow_pl.compaction.branches import decisive
from synflow_pl.compaction.channel_groups import has_rule
from synflow_pl.graph import operators
from synflow_pl.graph.operation import bind, values_in
from synflow_pl.graph.trace import Graph, Operation, Value

__all__ = ["interpret", "unknown"]

aten = torch.ops.aten
NAN = float("nan")
BeforeOperation = Callable[[int, Operation, Callable[[Value], Tensor]], None]


def unknown(tensor: Tensor) -> Tensor:
    """Return a tensor of NaN of the same shape; integers are returned unchanged."""
    return torch.full_like(tensor, NAN) if tensor.is_floating_point() else tensor


@torch.no_grad()
def interpret(
    recording: Graph,
    replacements: Mapping[int, Tensor],
    before: BeforeOperation,
    after: Callable[[Operation, Tensor], None] | None = None,
) -> list[Operation]:
    """Run a traced graph on other tensors, in which NaN marks unknown values.

    Args:
        recording: Graph of the network.
        replacements: Tensors in place of the recorded ones, by value number.
        before: Function that is called before each operation, with the operation's position, the
            operation, and a function that returns the tensor of a value.
        after: Function that is called after each operation, with the operation and its first
            output.

    Returns:
        The operations through which Python saw an unknown value. The forward pass may take another
        branch there on other values.
    """
    branching: list[Operation] = []
    values: dict[int, Tensor] = dict(replacements)
    # Integer inputs, and indices and comparisons that were computed from a NaN.
    unknown_integers = {
        value.number
        for value in recording.inputs
        if not recording.tensors[value.number].is_floating_point()
    }

    def tensor(value: Value) -> Tensor:
        result = values.get(value.number)
        result = recording.tensors[value.number] if result is None else result
        return result.double() if result.is_floating_point() else result

    def is_unknown(value: Value) -> bool:
        return value.number in unknown_integers or (
            tensor(value).is_floating_point() and bool(tensor(value).isnan().any())
        )

    last = {
        value.number: index
        for index, operation in enumerate(recording.operations)
        for value in operation.reads
    }
    for index, operation in enumerate(recording.operations):
        before(index, operation, tensor)
        reads = operation.reads
        reads_unknown_integer = any(value.number in unknown_integers for value in reads)
        reads_unknown = any(map(is_unknown, reads))
        if any(is_unknown(value) for value in _decisive(operation, tensor)):
            branching.append(operation)
        outputs: list[Tensor | None] | None = None
        if not (
            reads_unknown_integer
            or operation.name in _UNDETERMINED
            or (reads_unknown and not has_rule(operation))
        ):
            # The outputs of an operation without double precision are unknown.
            with suppress(RuntimeError):
                outputs = _run(operation, tensor)
        if outputs is None:
            outputs = [
                None if value is None else unknown(recording.tensors[value.number])
                for value in operation.outputs
            ]
        for value, output in zip(operation.outputs, outputs, strict=True):
            if value is None or output is None:
                continue
            if reads_unknown and not output.is_floating_point():
                unknown_integers.add(value.number)
            values[value.number] = output
        if after is not None and outputs[0] is not None:
            after(operation, outputs[0])
        for value in reads:
            if last[value.number] == index and value.number not in replacements:
                values.pop(value.number, None)
    return branching


def _decisive(operation: Operation, tensor: Callable[[Value], Tensor]) -> list[Value]:
    arguments = decisive(
        operation.target,
        operation.args,
        lambda x: isinstance(x, Value) and tensor(x).dtype in (torch.bool, torch.uint8),
    )
    return list(values_in(arguments))


# The values of the arguments do not determine the results: strides in memory, uninitialised memory
# and random numbers.
_UNDETERMINED = operators.UNINITIALISED | operators.RANDOM | {"as_strided"}


def _run(operation: Operation, tensor: Callable[[Value], Tensor]) -> list[Tensor | None]:
    args, kwargs = operation.arguments(tensor)
    if isinstance(kwargs.get("dtype"), torch.dtype) and kwargs["dtype"].is_floating_point:
        kwargs["dtype"] = torch.float64
    result: Any
    if operation.name in operators.BATCH_NORMS:
        result = _batch_norm(**bind(operation.target, args, kwargs))
    elif operation.name in _PRODUCTS:
        result = _PRODUCTS[operation.name](operation.target, *args, **kwargs)
    elif operation.name in operators.RESHAPES:
        result = args[0].reshape(args[1])
    else:
        result = operation.target(*args, **kwargs)
    outputs = [
        x if isinstance(x, Tensor) else None
        for x in (result if isinstance(result, (tuple, list)) else (result,))
    ]
    outputs += [None] * (len(operation.outputs) - len(outputs))
    if torch.Tag.pointwise in operation.target.tags and operation.name not in _PRODUCTS:
        # Some pointwise operations (fmax, for example) do not propagate NaN.
        for signal in filter(torch.is_floating_point, map(tensor, operation.reads)):
            outputs = [
                x.masked_fill(signal.isnan(), NAN) if x is not None and x.is_floating_point() else x
                for x in outputs
            ]
    return outputs


def _nonzero(tensor: Tensor) -> Tensor:
    """Return ones where entries are nonzero or NaN, and zeros elsewhere."""
    return (tensor != 0).to(tensor.dtype)


def _nan(tensor: Tensor) -> Tensor:
    """Return ones where entries are NaN, and zeros elsewhere."""
    return tensor.isnan().to(tensor.dtype)


def _contract(
    function: Callable[[Tensor, Tensor], Tensor], signal: Tensor, weight: Tensor
) -> Tensor:
    """Return a sum of products, NaN where it includes a product of NaN and a nonzero factor."""
    counts = function(_nan(signal), _nonzero(weight))
    if weight.isnan().any():
        counts = counts + function(_nonzero(signal), _nan(weight))
    is_nan = counts > 0.5
    if is_nan.all():
        return torch.full_like(counts, NAN)
    return function(signal.nan_to_num(0), weight.nan_to_num(0)).masked_fill(is_nan, NAN)


def _convolution(
    target: Any, signal: Tensor, weight: Tensor, bias: Tensor | None, *how: Any
) -> Tensor:
    output = _contract(lambda x, w: target(x, w, None, *how), signal, weight)
    return output if bias is None else output + bias.view(-1, *[1] * (output.dim() - 2))


def _addmm(
    target: Any, bias: Tensor, signal: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    return beta * bias + alpha * _contract(torch.mm, signal, weight)


def _mul(target: Any, left: Any, right: Any) -> Tensor:
    result: Tensor = target(left, right)
    zero = (torch.as_tensor(left) == 0) | (torch.as_tensor(right) == 0)
    return result.masked_fill(zero.to(result.device), 0) if result.is_floating_point() else result


_PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "convolution": _convolution,
    "mm": _contract,
    "addmm": _addmm,
    "mul": _mul,
}


def _batch_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    **arguments: Any,
) -> list[Tensor]:
    """Return BatchNorm's output in eval mode, which is the shift where the gain is zero."""
    if arguments.get("training") or running_mean is None or running_var is None:
        return [torch.full_like(input, NAN)]
    eps: float = arguments["eps"] if "eps" in arguments else arguments["epsilon"]
    shape = (1, -1, *[1] * (input.dim() - 2))
    out = (input - running_mean.view(shape)) * (running_var.view(shape) + eps).rsqrt()
    if weight is not None:
        out = _mul(torch.mul, out, weight.view(shape))
    return [out if bias is None else out + bias.view(shape)]
