"""Rules: how each operation is translated into the positive linear network.

Tanaka et al. 2020 score a network by R = 1^T f(1) with every weight replaced by its magnitude. This
assumes a *linear* network: |w| for every weight, and of everything else only what passes flow on.

- A pointwise nonlinearity is the identity. (In a ReLU network with positive weights ReLU is the
  identity; ReLU6 would saturate.)
- A normalisation is its |gain|, for BatchNorm divided by its running deviation; no mean is
  subtracted.
- Additive terms (biases, shifts, position embeddings) are zero, since they would dominate the flow
  in deep layers.
- Pooling, reshaping, concatenation and addition stay as they are.
- Of two multiplied signals, one is a constant (:mod:`synflow_pl.flow.gates`).

An operation without a rule is the identity if shapes agree and the mean otherwise.
:attr:`LinearNetwork.notes` names it with the error of this replacement.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from synflow_pl.flow.builder import CREATES, Builder, Rule
from synflow_pl.flow.convolution import convolve
from synflow_pl.flow.gates import attention, contract, gate, gated, set_level
from synflow_pl.flow.meetings import Gate, Kernel
from synflow_pl.flow.normalisation import NORMALISATIONS
from synflow_pl.flow.spectra import SPECTRA
from synflow_pl.graph.trace import Operation, is_number

__all__ = ["IDENTITY", "SIMPLE", "apply_rule"]

aten = torch.ops.aten

# Operations that are the identity on flow: pointwise nonlinearities, copies, conversions.
IDENTITY = frozenset(
    """
    relu leaky_relu rrelu_with_noise elu celu gelu silu mish sigmoid tanh hardtanh hardswish
    hardsigmoid softplus relu6 softsign log_sigmoid_forward threshold hardshrink softshrink clamp
    clamp_min clamp_max _prelu_kernel _softmax _safe_softmax _log_softmax
    exp expm1 exp2 log log1p log2 sqrt rsqrt reciprocal square pow erf sin cos sign round floor
    ceil neg rsub abs nan_to_num native_dropout dropout clone alias detach contiguous lift_fresh
    native_alpha_dropout fill_diagonal bernoulli normal poisson
    heaviside sgn trunc remainder fmod logit erfc erfinv sinh cosh tan asin acos atan asinh acosh
    atanh log10 sinc deg2rad rad2deg
    angle _conj _conj_physical conj_physical resolve_conj resolve_neg _neg_view
    fake_quantize_per_tensor_affine_cachemask
    _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
    fake_quantize_per_channel_affine_cachemask
    """.split()
)
# Operations that are linear with non-negative coefficients or select entries: they stay as they
# are.
_LINEAR = frozenset(
    """
    permute transpose t unsqueeze squeeze expand repeat flip roll slice select narrow split
    split_with_sizes unbind cat stack unfold im2col col2im pixel_shuffle pixel_unshuffle
    channel_shuffle native_channel_shuffle mean sum cumsum
    max_pool1d max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d amax max topk sort cummax
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d
    _upsample_bilinear2d_aa upsample_linear1d upsample_trilinear3d grid_sampler_2d
    reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d
    index index_select gather diagonal tril triu movedim slice_scatter select_scatter _unsafe_index
    scatter scatter_add index_add index_copy repeat_interleave maximum unsafe_split
    diagonal_scatter _pack_padded_sequence
    """.split()
)
_VIEW = frozenset({"view", "_unsafe_view", "_reshape_alias", "view_copy", "reshape"})

# Operations with few or no floating-point operations per entry.
SIMPLE = IDENTITY | _LINEAR | _VIEW | CREATES | NORMALISATIONS.keys()


def apply_rule(builder: Builder, operation: Operation) -> None:
    """Add the translation of an operation to ``builder``."""
    name = operation.name
    if name == "bernoulli" and any(
        argument.name == "p" for argument in operation.target._schema.arguments
    ):
        return  # only the shape of the argument matters
    if name in _RULES:
        _RULES[name](builder, operation)
    elif name in CREATES:
        return  # a constant: only the shape of the argument matters
    elif name in IDENTITY:
        builder.add_identity(
            operation, next(value for value in operation.reads if builder.carries(value))
        )
    elif name in _LINEAR:
        builder.add_operation(operation)
    elif name in _VIEW:
        # A tensor that was contiguous in the network may not be contiguous in the linear network.
        builder.add_operation(operation, torch.reshape)
    else:
        builder.add_fallback(operation)
    set_level(builder, operation)


def _add(builder: Builder, operation: Operation) -> None:
    left, right = operation.args[:2]
    if not (builder.carries(left) and builder.carries(right)):
        return builder.add_identity(operation, left if builder.carries(left) else right)
    if operation.name == "sub" and builder.resolve(left) == builder.resolve(right):
        builder.difference_from[operation.outputs[0].number] = builder.resolve(left)  # type: ignore[union-attr]
    for signal, error in ((left, right), (right, left)):
        if builder.difference_from.get(builder.resolve(error).number) == builder.resolve(signal):
            # A straight-through estimator: x + (round(x) - x).detach().
            return builder.add_identity(operation, signal)
    # A difference becomes a sum, since flow is non-negative.
    alpha = abs(operation.kwargs.get("alpha", 1))
    add = torch.add if alpha == 1 else partial(torch.add, alpha=alpha)
    builder.add_node(operation, add, builder.resolve(left), builder.resolve(right))


def _scale(builder: Builder, operation: Operation) -> None:
    left, right = operation.args[:2]
    if builder.carries(left) and builder.carries(right):
        if builder.in_weights:
            # Both factors of a factorised weight stay variables.
            return builder.add_node(
                operation, torch.mul, builder.resolve(left), builder.resolve(right)
            )
        return gate(builder, operation, left, right)
    builder.add_node(operation, torch.mul, builder.factor(left), builder.factor(right))


def _divide(builder: Builder, operation: Operation) -> None:
    above, below = operation.args[:2]
    if not builder.carries(below):
        return builder.add_node(operation, torch.div, builder.resolve(above), builder.factor(below))
    # A divisor that is a signal is a normaliser or a gate and counts as one. A divisor of weights
    # keeps its traced value.
    if not builder.carries(above):
        return builder.add_identity(operation, below)
    if builder.in_weights:
        return builder.add_node(
            operation, torch.div, builder.resolve(above), builder.gain(builder.tensor(below))
        )
    gated(builder, operation, above, below, shuts=False)


def _add_product(builder: Builder, operation: Operation) -> None:
    """Translate ``addcmul(a, b, c)``, which is a + b * c."""
    base, left, right = operation.args[:3]
    product: Any
    if builder.carries(left) and builder.carries(right):
        builder.gated = True
        product = builder.resolve(left)
        if builder.open_gates:
            return builder.add_node(
                operation,
                Gate(left.number, right.number),
                product,
                builder.resolve(right),
                builder.operand(base),
            )
    elif builder.carries(left) or builder.carries(right):
        product = left if builder.carries(left) else right
        factor = builder.factor(right if builder.carries(left) else left)
        builder.add_node(
            operation, _multiply_add, builder.operand(base), builder.resolve(product), factor
        )
        return
    else:
        return builder.add_identity(operation, base)
    builder.add_node(operation, torch.add, builder.operand(base), product)


def _multiply_add(base: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return base + left * right


def _convolution(builder: Builder, operation: Operation) -> None:
    signal, weight, _, *geometry = operation.args
    if builder.carries(signal) and builder.carries(weight) and not builder.in_weights:
        # A kernel that is computed from the input is a gate.
        builder.gated = True
        if builder.open_gates:
            meeting = Kernel(signal.number, weight.number, tuple(geometry))
            return builder.add_node(
                operation, meeting, builder.resolve(signal), builder.resolve(weight)
            )
        kernel = builder.constant(builder.tensor(weight).abs())
    else:
        kernel = builder.factor(weight)
    if not builder.carries(signal) and not builder.in_weights:
        return builder.add_fallback(operation)
    builder.add_node(
        operation, convolve, builder.factor(signal), kernel, None, *geometry, contraction=True
    )


def _deformable(builder: Builder, operation: Operation) -> None:
    """Translate a deformable convolution: on uniform flow it equals a plain convolution.

    Offsets and modulation factors that are signals are gates.
    """
    signal, weight, offset, factor, _, *numbers = operation.args
    if not builder.carries(signal):
        return builder.add_fallback(operation)
    geometry = (numbers[0:2], numbers[2:4], numbers[4:6], False, [0, 0], numbers[6])
    gates = [builder.resolve(value) for value in (offset, factor) if builder.carries(value)]
    builder.gated |= bool(gates)
    if gates and builder.open_gates:
        return builder.add_node(
            operation,
            _deformed,
            builder.factor(signal),
            builder.factor(weight),
            geometry,
            *gates,
            contraction=True,
        )
    builder.add_node(
        operation,
        convolve,
        builder.factor(signal),
        builder.factor(weight),
        None,
        *geometry,
        contraction=True,
    )


def _deformed(signal: Tensor, weight: Tensor, geometry: tuple[Any, ...], *gates: Tensor) -> Tensor:
    """Compute the convolution of a signal that depends on every gate."""
    return convolve(signal + sum(gate.mean() for gate in gates), weight, None, *geometry)


def _product(builder: Builder, operation: Operation) -> None:
    *added, left, right = operation.args
    both = builder.carries(left) and builder.carries(right)
    if added and builder.carries(added[0]):
        # A signal plus a product (a bias that is computed from the input): it passes on its flow if
        # the product carries none.
        if not (builder.carries(left) or builder.carries(right)):
            return builder.add_identity(operation, added[0])
        return builder.add_fallback(operation)
    if both and not builder.in_weights:
        return contract(builder, operation, left, right)
    builder.add_node(
        operation, torch.matmul, builder.factor(left), builder.factor(right), contraction=True
    )


def _pad(builder: Builder, operation: Operation) -> None:
    # The padding value is an additive term: zero, so that no flow enters at the border.
    builder.add_node(
        operation, aten.constant_pad_nd, builder.resolve(operation.args[0]), operation.args[1], 0.0
    )


def _convert(builder: Builder, operation: Operation) -> None:
    """Translate a conversion to another precision, to integers or to booleans."""
    output, signal = operation.outputs[0], operation.args[0]
    assert output is not None
    return (
        builder.add_identity(operation, signal)
        if is_number(builder.tensor(output))
        else builder.mark_input_dependent(output, [signal])
    )


def _fill_masked(builder: Builder, operation: Operation) -> None:
    signal, mask = operation.args[:2]
    if not builder.carries(signal):
        return  # only the fill value carries flow
    if mask.number in builder.input_dependent:
        return builder.add_identity(operation, signal)
    if builder.is_random(mask):
        return builder.add_node(
            operation,
            torch.mul,
            builder.resolve(signal),
            builder.constant(1 - builder.average(mask)),
        )
    builder.add_node(
        operation, torch.masked_fill, builder.resolve(signal), builder.tensor(mask), 0.0
    )


def _where(builder: Builder, operation: Operation) -> None:
    condition, left, right = operation.args[:3]
    if builder.is_random(condition):
        share = builder.average(condition)
        return builder.add_node(
            operation,
            _blend,
            builder.constant(share),
            builder.operand(left),
            builder.operand(right),
        )
    if condition.number not in builder.input_dependent:
        condition = builder.tensor(condition)
        return builder.add_node(
            operation, torch.where, condition, builder.operand(left), builder.operand(right)
        )
    # A condition that depends on the signal makes a nonlinearity, and both branches pass on flow.
    _add(builder, Operation(operation.target, (left, right), {}, operation.outputs))


def _put(builder: Builder, operation: Operation) -> None:
    signal, places = operation.args[:2]
    chosen = any(
        builder.tensor(place).dtype == torch.bool and place.number in builder.input_dependent
        for place in places
        if place is not None
    )
    if chosen and builder.carries(signal):
        # y[y < 0] = 0: an index that depends on the signal makes a nonlinearity.
        return builder.add_identity(operation, signal)
    builder.add_operation(operation)


def _blend(share: Tensor, left: Any, right: Any) -> Tensor:
    return share * left + (1 - share) * right


def _copy(builder: Builder, operation: Operation) -> None:
    source = operation.args[1]
    if builder.carries(source):
        builder.add_identity(operation, source)
    elif source.number in builder.input_dependent:
        builder.start_flow(operation, [source])


def _glu(builder: Builder, operation: Operation) -> None:
    signal, dim = operation.args[0], operation.args[1] if len(operation.args) > 1 else -1
    builder.gated = True
    if builder.open_gates:
        return builder.add_node(
            operation, Gate(signal.number, signal.number, halves=dim), builder.resolve(signal)
        )
    builder.add_node(operation, _first_half, builder.resolve(signal), dim)


def _first_half(signal: Tensor, dim: int) -> Tensor:
    return signal.chunk(2, dim)[0]


def _moments(builder: Builder, operation: Operation) -> None:
    if not builder.open_gates:
        return builder.add_fallback(operation)
    given = operation.bound()
    dims = given.get("dim") or tuple(range(builder.tensor(given["self"]).dim()))
    for index in range(len(operation.outputs)):
        builder.add_node(
            operation,
            _mean,
            builder.resolve(given["self"]),
            dims,
            given.get("keepdim", False),
            output=index,
        )


def _mean(signal: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return signal.mean(dims, keepdim=keepdim)


def _bicubic(builder: Builder, operation: Operation) -> None:
    # Bicubic coefficients can be negative; bilinear ones are non-negative and nearly as wide.
    args = builder.operand(operation.args)
    builder.add_node(operation, aten.upsample_bilinear2d, *args)


def _minimum(builder: Builder, operation: Operation) -> None:
    left, right = operation.args[:2]
    if builder.carries(left) and builder.carries(right):
        return builder.add_operation(operation)
    builder.add_identity(operation, left if builder.carries(left) else right)


_RULES: dict[str, Rule] = {
    "add": _add,
    "sub": _add,
    "mul": _scale,
    "div": _divide,
    "addcmul": _add_product,
    "convolution": _convolution,
    "deform_conv2d": _deformable,
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "addmv", "mv"), _product),
    **NORMALISATIONS,
    **SPECTRA,
    "constant_pad_nd": _pad,
    "masked_fill": _fill_masked,
    "where": _where,
    "copy": _copy,
    "index_put": _put,
    "_to_copy": _convert,
    "minimum": _minimum,
    "glu": _glu,
    **dict.fromkeys(("var_mean", "std_mean", "var", "std"), _moments),
    "upsample_bicubic2d": _bicubic,
    "_upsample_bicubic2d_aa": _bicubic,
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
            "_scaled_dot_product_attention_math",
            "_scaled_dot_product_attention_math_for_mps",
        ),
        attention,
    ),
}
