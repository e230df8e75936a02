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

from synflow_pl.flow.normalisation import NORMALISATIONS
from synflow_pl.flow.rules import IDENTITY
from synflow_pl.graph.trace import Graph, Operation, is_number

__all__ = ["inhomogeneous"]

# Functions that the linear network replaces by the identity and that are homogeneous: linear on
# each side of zero, copies, constants that are added or written (biases), and noise by its mean.
_HOMOGENEOUS = frozenset(
    """
    relu leaky_relu rrelu_with_noise _prelu_kernel abs neg rsub nan_to_num deg2rad rad2deg
    _conj _conj_physical conj_physical resolve_conj resolve_neg _neg_view
    clone alias detach contiguous lift_fresh fill_diagonal
    dropout native_dropout native_alpha_dropout bernoulli normal poisson
    """.split()
)
# Functions that are homogeneous if all bounds are zero, as clamp(x, min=0) is.
_BOUNDED = frozenset("clamp clamp_min clamp_max threshold".split())
_NONLINEARITIES = IDENTITY - _HOMOGENEOUS - _BOUNDED
_GATES = frozenset("mul div glu mm bmm baddbmm addcmul".split())


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
        signals.update(output.number for output in operation.outputs if output is not None)
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
    if name in NORMALISATIONS:
        return "normalisation"
    if "scaled_dot_product" in name or name in ("_softmax", "_safe_softmax", "_log_softmax"):
        return "attention" if name != "_log_softmax" else "nonlinearity"
    if name in _NONLINEARITIES:
        return "nonlinearity"
    if name in _BOUNDED:
        bounds = (bound for key, bound in operation.bound().items() if key != "self")
        return None if all(bound in (0, None) for bound in bounds) else "nonlinearity"
    if name == "glu" or (name in _GATES and signals > 1):
        return "gate"
    return None
