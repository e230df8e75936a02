"""Constants: what in a network does not depend on its input, and how much it is.

The recorded operations are run again on an input of NaN, in double precision: whatever is NaN
    afterwards may depend on the input, every
other number is a constant. Three things a plain run would get wrong. A removed weight reads
    nothing, but 0 * NaN is NaN: products are
taken apart into where something is and how much. Comparisons and indices forget NaN: what reads one
    that was made from a NaN is NaN
throughout, as is all that an operation without a rule makes of one. And whole numbers, words say,
cannot be NaN: where they are the input, they count as made from one.

With NaN for every weight that trains as well, what is left is constant throughout training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from synflow_pl.compaction.branches import decisive
from synflow_pl.compaction.channel_groups import BATCH_NORMS, VIEWS, followed
from synflow_pl.graph.trace import Graph, Operation, Value

__all__ = ["interpret", "unknown"]

aten = torch.ops.aten
NAN = float("nan")
Watch = Callable[[int, Operation, Callable[[Value], Tensor]], None]


def unknown(tensor: Tensor) -> Tensor:
    """NaN in its place; whole numbers as they are."""
    return torch.full_like(tensor, NAN) if tensor.is_floating_point() else tensor


@torch.no_grad()
def interpret(
    recording: Graph,
    given: Mapping[int, Tensor],
    watch: Watch,
    after: Callable[[Operation, Tensor], None] | None = None,
) -> list[Operation]:
    """Run a recording on other numbers.

    Args:
        recording: of the network.
        given: by value number, tensors in place of the recorded ones: NaN is what varies.
        watch: called before each operation with its place, itself, and what gives the tensor of a
            value.
        after: called after each operation with itself and what it gave first.

    Returns:
        The operations by which Python saw something of what varies, so that the forward pass may
        take another branch on other values.
    """
    branching: list[Operation] = []
    values: dict[int, Tensor] = dict(given)
    # Inputs of whole numbers, and indices and comparisons that were made from a NaN.
    changing = {
        value.number
        for value in recording.inputs
        if not recording.tensors[value.number].is_floating_point()
    }

    def tensor(value: Value) -> Tensor:
        found = values.get(value.number)
        found = recording.tensors[value.number] if found is None else found
        return found.double() if found.is_floating_point() else found

    def varies(value: Value) -> bool:
        return value.number in changing or (
            tensor(value).is_floating_point() and bool(tensor(value).isnan().any())
        )

    last = {
        value.number: index
        for index, operation in enumerate(recording.operations)
        for value in operation.reads
    }
    for index, operation in enumerate(recording.operations):
        watch(index, operation, tensor)
        reads = operation.reads
        blurred = any(value.number in changing for value in reads)
        some = any(map(varies, reads))
        if any(varies(value) for value in _decisive(operation, tensor)):
            branching.append(operation)
        made: list[Tensor | None]
        if blurred or operation.name in _FORGETFUL or (some and not followed(operation)):
            made = _varying(operation, recording)
        else:
            made = _attempt(operation, tensor, recording)
        for value, result in zip(operation.outputs, made, strict=True):
            if value is None or result is None:
                continue
            if some and not result.is_floating_point():
                changing.add(value.number)
            values[value.number] = result
        if after is not None and made[0] is not None:
            after(operation, made[0])
        for value in reads:
            if last[value.number] == index and value.number not in given:
                values.pop(value.number, None)
    return branching


def _decisive(operation: Operation, tensor: Callable[[Value], Tensor]) -> list[Value]:
    arguments = decisive(
        operation.target,
        operation.args,
        lambda x: isinstance(x, Value) and tensor(x).dtype in (torch.bool, torch.uint8),
    )
    return [
        leaf
        for leaf in tree_leaves(arguments, is_leaf=lambda x: isinstance(x, Value))
        if isinstance(leaf, Value)
    ]


# Their results cannot be had from the numbers alone: memory as it lies, and random numbers.
_FORGETFUL = frozenset(
    """
    as_strided empty empty_like new_empty empty_strided bernoulli rand randn rand_like randn_like native_dropout uniform
    normal_functional exponential random
    """.split()
)


def _all_nan(recorded: Tensor) -> Tensor:
    return (
        torch.full_like(recorded, NAN, dtype=torch.float64)
        if recorded.is_floating_point()
        else recorded
    )


def _attempt(
    operation: Operation, tensor: Callable[[Value], Tensor], recording: Graph
) -> list[Tensor | None]:
    """Run an operation; one that is not implemented in double precision counts as varying."""
    try:
        return _run(operation, tensor)
    except RuntimeError:
        return _varying(operation, recording)


def _varying(operation: Operation, recording: Graph) -> list[Tensor | None]:
    return [
        None if value is None else _all_nan(recording.tensors[value.number])
        for value in operation.outputs
    ]


def _run(operation: Operation, tensor: Callable[[Value], Tensor]) -> list[Tensor | None]:
    args, kwargs = tree_map(
        lambda leaf: tensor(leaf) if isinstance(leaf, Value) else leaf,
        (operation.args, operation.kwargs),
        is_leaf=lambda leaf: isinstance(leaf, Value),
    )
    if isinstance(kwargs.get("dtype"), torch.dtype) and kwargs["dtype"].is_floating_point:
        kwargs["dtype"] = torch.float64
    result: Any
    if operation.name in BATCH_NORMS:
        result = _batch_norm(
            **{
                name: tensor(x) if isinstance(x, Value) else x
                for name, x in operation.bound().items()
            }
        )
    elif operation.name in _PRODUCTS:
        result = _PRODUCTS[operation.name](operation.target, *args, **kwargs)
    elif operation.name in VIEWS:
        result = args[0].reshape(args[1])
    else:
        result = operation.target(*args, **kwargs)
    made = [
        x if isinstance(x, Tensor) else None
        for x in (result if isinstance(result, (tuple, list)) else (result,))
    ]
    made += [None] * (len(operation.outputs) - len(made))
    if torch.Tag.pointwise in operation.target.tags and operation.name not in _PRODUCTS:
        # Whatever the operation makes of NaN itself.
        for signal in (tensor(value) for value in operation.reads):
            made = [
                x.masked_fill(signal.isnan(), NAN) if x is not None and _numbers(signal, x) else x
                for x in made
            ]
    return made


def _numbers(*tensors: Tensor) -> bool:
    return all(tensor.is_floating_point() for tensor in tensors)


def _there(tensor: Tensor) -> Tensor:
    """Ones where anything is or may be: NaN counts."""
    return (tensor != 0).to(tensor.dtype)


def _varies(tensor: Tensor) -> Tensor:
    return tensor.isnan().to(tensor.dtype)


def _contract(
    function: Callable[[Tensor, Tensor], Tensor], signal: Tensor, weight: Tensor
) -> Tensor:
    """A sum of products, NaN where any product of it varies."""
    counts = function(_varies(signal), _there(weight))
    if weight.isnan().any():
        counts = counts + function(_there(signal), _varies(weight))
    varies = counts > 0.5
    if varies.all():
        return torch.full_like(counts, NAN)
    return function(signal.nan_to_num(0), weight.nan_to_num(0)).masked_fill(varies, NAN)


def _convolution(
    target: Any, signal: Tensor, weight: Tensor, bias: Tensor | None, *how: Any
) -> Tensor:
    made = _contract(lambda x, w: target(x, w, None, *how), signal, weight)
    return made if bias is None else made + bias.view(-1, *[1] * (made.dim() - 2))


def _mm(target: Any, signal: Tensor, weight: Tensor) -> Tensor:
    return _contract(target, signal, weight)


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
    "mm": _mm,
    "addmm": _addmm,
    "mul": _mul,
}


def _batch_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    **given: Any,
) -> list[Tensor]:
    """A gain of zero leaves the shift alone."""
    if given.get("training") or running_mean is None or running_var is None:
        return [torch.full_like(input, NAN)]
    eps: float = given["eps"] if "eps" in given else given["epsilon"]
    across = (1, -1, *[1] * (input.dim() - 2))
    out = (input - running_mean.view(across)) * (running_var.view(across) + eps).rsqrt()
    if weight is not None:
        out = _mul(torch.mul, out, weight.view(across))
    return [out if bias is None else out + bias.view(across)]
