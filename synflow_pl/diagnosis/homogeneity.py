"""Homogeneity: which modules of a network break what the conservation of flow rests on.

Tanaka et al. 2020 prove Theorems 1 and 2 for networks whose functions are positively homogeneous:
f(c x) = c f(x) for c > 0. ReLU, max pooling and every linear layer are (their biases count as
weights of an input that is one). What is not, the skeleton replaces by something linear before flow
is measured: conservation holds in the skeleton, and in these modules the network differs from it.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from synflow_pl.flow.normalisation import NORMALISATIONS
from synflow_pl.graph.trace import Graph, Operation, is_number

__all__ = ["inhomogeneous"]

# (clamp_min and clamp_max are taken up where they clamp at something else than zero.)
_NONLINEARITIES = frozenset(
    """
    elu celu gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid softplus relu6 softsign log_sigmoid_forward threshold hardshrink
    softshrink clamp exp expm1 exp2 log log1p log2 sqrt rsqrt reciprocal square pow erf sin cos sign round floor ceil
    """.split()
)
_GATES = frozenset("mul div glu mm bmm baddbmm addcmul".split())


def inhomogeneous(
    network: nn.Module, recording: Graph, unknown: Collection[str] = ()
) -> dict[str, str]:
    """By name of a module, in order of execution, what in it is not homogeneous: normalisation,
    nonlinearity, gate, attention, or an operation without a rule; several joined by "and". What a
    network does outside its submodules goes by the network's class.

    Args:
        network: the network under study.
        recording: of it.
        unknown: the operations that its skeleton has no rule for, as :meth:`Skeleton.unknown` names
            them.
    """
    signals = {value.number for value in recording.inputs}
    found: dict[str, dict[str, None]] = {}
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
            found.setdefault(operation.module or type(network).__name__, {})[kind] = None
    return {name: " and ".join(kinds) for name, kinds in found.items()}


def _kind(operation: Operation, signals: int) -> str | None:
    """What makes an operation that reads so many signals inhomogeneous, if anything does."""
    name = operation.name
    if name in NORMALISATIONS:
        return "normalisation"
    if "scaled_dot_product" in name or name in ("_softmax", "_safe_softmax", "_log_softmax"):
        return "attention" if name != "_log_softmax" else "nonlinearity"
    if name in _NONLINEARITIES:
        return "nonlinearity"
    if name in ("clamp_min", "clamp_max") and operation.args[1] != 0:
        return "nonlinearity"
    if name == "glu" or (name in _GATES and signals > 1):
        return "gate"
    return None
