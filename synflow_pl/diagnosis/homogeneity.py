"""Operations that are not homogeneous, which the conservation of flow assumes.

Tanaka et al. 2020 prove Theorems 1 and 2 for networks of positively homogeneous functions:
f(c x) = c f(x) for c > 0. ReLU, max pooling and linear layers are homogeneous (a bias counts as the
weight of an input that is one). The linear network replaces all other functions by linear ones
before flow is measured. Flow is conserved in the linear network, and the network differs from it
in the modules that :func:`inhomogeneous` returns.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from synflow_pl.graph import operators
from synflow_pl.graph.trace import Graph, Operation, is_number

__all__ = ["inhomogeneous"]

# Homogeneous if all bounds are zero, as clamp(x, min=0) is.
_BOUNDED = (operators.CLAMPS - {"hardtanh"}) | operators.ONE_SIDED_CLAMPS | {"threshold"}
# In addmm and addmv, the second signal is usually an added term.
_PRODUCTS = (operators.MATRIX_PRODUCTS - {"addmm", "addmv"}) | {"mul", "div", "addcmul"}


def inhomogeneous(
    network: nn.Module, recording: Graph, unknown: Collection[str] = ()
) -> dict[str, str]:
    """Return the kinds of operations of each module that are not homogeneous.

    Args:
        network: The network under study.
        recording: Graph of the network.
        unknown: Operations for which the linear network has no rule, as
            :meth:`LinearNetwork.unknown` names them.

    Returns:
        By module name, in order of execution: normalisation, nonlinearity, gate, attention, or
        operation without a rule; several are joined by "and". The name for operations outside
        submodules is the network's class.
    """
    signals = {value.number for value in recording.inputs}
    kinds: dict[str, dict[str, None]] = {}
    for operation in recording.operations:
        read = [value.number for value in operation.reads if value.number in signals]
        if not read:
            continue
        signals.update(output.number for output in operation.results)
        numbers = [number for number in read if is_number(recording.tensors[number])]
        kind = (
            "operation without a rule"
            if str(operation.target) in unknown
            else _kind(operation, len(numbers))
        )
        if kind is not None:
            kinds.setdefault(operation.module or type(network).__name__, {})[kind] = None
    return {name: " and ".join(of_module) for name, of_module in kinds.items()}


def _kind(operation: Operation, signals: int) -> str | None:
    """Return why an operation that reads ``signals`` signals is not homogeneous, if it is not."""
    name = operation.name
    if name in operators.NORMALISATIONS:
        return "normalisation"
    if name in operators.ATTENTIONS | operators.SOFTMAXES:
        return "attention"
    if name in _BOUNDED:
        bounds = (bound for key, bound in operation.bound().items() if key != "self")
        return None if all(bound in (0, None) for bound in bounds) else "nonlinearity"
    if name in operators.NONLINEARITIES or name == "_log_softmax":
        return "nonlinearity"
    if name == "glu" or (name in _PRODUCTS and signals > 1):
        return "gate"
    return None
