"""Operators: the one table of ATen operators, by class.

A property of operators that more than one part of the package needs, such as that they return a
part of their argument or that their values are bounded, is stated here once. What is done with the
operators of a class is decided where the class is used: in :mod:`synflow_pl.flow.rules` for
synaptic flow, in :mod:`synflow_pl.compaction` for compaction, in
:mod:`synflow_pl.diagnosis.flops` for FLOPs.

Names are those of :attr:`synflow_pl.graph.operation.Operation.name`: without namespace and
overload, and without the underscore of the form that writes in place. Operators that only one rule
of one file concerns are named there.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# -- Functions of single entries

# Homogeneous: f(c x) = c f(x) for c > 0.
RECTIFIERS = _names("relu leaky_relu rrelu_with_noise _prelu_kernel")
# Linear on real numbers.
LINEAR_FUNCTIONS = _names(
    """
    neg deg2rad rad2deg nan_to_num
    _conj _conj_physical conj_physical resolve_conj resolve_neg _neg_view
    """
)
# Values in [0, c] with a constant c, for every argument.
BOUNDED_POSITIVE = _names("sigmoid hardsigmoid heaviside erfc")
# Values in [-c, c] with a constant c, for every argument.
BOUNDED = _names("tanh erf sign sgn sin cos sinc atan")
# Other nonlinearities that usually follow a layer.
ACTIVATIONS = _names(
    """
    elu celu selu gelu silu mish hardswish softplus relu6 log_sigmoid_forward threshold hardshrink
    softshrink
    """
)
# Bounded if both bounds are given, which are arguments.
CLAMPS = _names("clamp hardtanh")
# Homogeneous if the bound, which is an argument, is zero.
ONE_SIDED_CLAMPS = _names("clamp_min clamp_max")
# Other nonlinear functions. Powers and roots are often parts of a normalisation written by hand.
FUNCTIONS = _names(
    """
    exp expm1 exp2 log log1p log2 log10 sqrt rsqrt reciprocal square pow round floor ceil trunc
    remainder fmod logit erfinv sinh cosh tan asin acos asinh acosh atanh angle
    """
)
QUANTISERS = _names(
    """
    fake_quantize_per_tensor_affine_cachemask
    _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
    fake_quantize_per_channel_affine_cachemask
    """
)
DROPOUTS = _names("dropout native_dropout")
# Random numbers from distributions whose parameters are the entries of the argument.
DRAWN = _names("bernoulli normal poisson")
# Functions that are not homogeneous, whatever their other arguments.
NONLINEARITIES = BOUNDED_POSITIVE | BOUNDED | ACTIVATIONS | CLAMPS | FUNCTIONS | QUANTISERS
ELEMENTWISE = (
    RECTIFIERS
    | LINEAR_FUNCTIONS
    | NONLINEARITIES
    | ONE_SIDED_CLAMPS
    | DROPOUTS
    | DRAWN
    | _names("abs fill_diagonal")
)
# Elementwise operators that not every version of torch tags as pointwise.
POINTWISE_WITHOUT_TAG = _names(
    """
    hardswish hardsigmoid hardtanh leaky_relu elu celu selu gelu silu mish softplus relu relu6 copy
    clone _prelu_kernel log_sigmoid_forward
    """
)

# -- Operators that move entries

ALIASES = _names("alias detach lift_fresh clone contiguous")
# To another precision, device or memory layout.
CONVERSIONS = _names("_to_copy")
RESHAPES = _names("view _unsafe_view _reshape_alias reshape view_copy")
TRANSPOSITIONS = _names("t transpose permute movedim")
SHAPES = RESHAPES | TRANSPOSITIONS | _names("unsqueeze squeeze expand")
SPLITS = _names("split split_with_sizes unsafe_split unsafe_split_with_sizes")
PARTS = SPLITS | _names("unbind slice select narrow")
# Each entry of the output is an entry of the only tensor that is read, so zeros stay zeros.
MOVES = ALIASES | CONVERSIONS | SHAPES | PARTS | _names("repeat flip")
JOINS = _names("cat stack")
INDEXING = _names("index _unsafe_index index_select gather take")
EMBEDDINGS = _names("embedding _embedding_bag _embedding_bag_forward_only")

# -- Sums, products and normalisations

SUMS = _names("add sub rsub")
MATRIX_PRODUCTS = _names("mm addmm bmm baddbmm mv addmv")
SOFTMAXES = _names("_softmax _safe_softmax")
ATTENTIONS = _names(
    """
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
    _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
    _scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math
    _scaled_dot_product_attention_math_for_mps
    """
)
# Fused recurrent layers, with the arguments that hold their weights.
RECURRENT_WEIGHTS = {
    "mkldnn_rnn_layer": ("weight0", "weight1"),
    "_cudnn_rnn": ("weight",),
    "miopen_rnn": ("weight",),
    "_lstm_mps": ("params",),
}
BATCH_NORMS = _names(
    """
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training _batch_norm_no_update cudnn_batch_norm miopen_batch_norm
    """
)
# BatchNorm that divides by the deviation of the batch, in eval mode as well.
TRAINING_BATCH_NORMS = _names("_batch_norm_with_update _batch_norm_with_update_functional")
LAYER_NORMS = _names("native_layer_norm _fused_rms_norm")
GROUP_NORMS = _names("native_group_norm")
WEIGHT_NORMS = _names("_weight_norm_interface")
NORMALISATIONS = BATCH_NORMS | TRAINING_BATCH_NORMS | LAYER_NORMS | GROUP_NORMS | WEIGHT_NORMS
MOMENTS = _names("var_mean std_mean var std")

# -- Windows

MAX_POOLS = _names("max_pool1d max_pool2d_with_indices max_pool3d_with_indices")
ADAPTIVE_MAX_POOLS = _names("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d")
AVERAGE_POOLS = _names(
    """
    avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d
    """
)
POOLS = MAX_POOLS | ADAPTIVE_MAX_POOLS | AVERAGE_POOLS
# Interpolation with coefficients that are not negative.
RESIZES = _names(
    """
    upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    upsample_linear1d upsample_bilinear2d upsample_trilinear3d _upsample_bilinear2d_aa
    """
)
# Interpolation with negative coefficients as well.
BICUBIC_RESIZES = _names("upsample_bicubic2d _upsample_bicubic2d_aa")
# Padding with entries of the signal. (Padding with a constant is `constant_pad_nd`.)
PADS = _names(
    """
    reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d
    """
)

# Linear operators with non-negative coefficients, and operators that select entries. Minima are not
# among them: a flow of zero at one entry would hide the others.
LINEAR = (
    TRANSPOSITIONS
    | PARTS
    | JOINS
    | INDEXING
    | POOLS
    | RESIZES
    | PADS
    | _names(
        """
        unsqueeze squeeze expand repeat flip roll unfold im2col col2im pixel_shuffle pixel_unshuffle
        channel_shuffle native_channel_shuffle mean sum cumsum amax max maximum topk sort cummax
        grid_sampler_2d grid_sampler_3d diagonal tril triu slice_scatter select_scatter
        diagonal_scatter scatter scatter_add index_add index_copy repeat_interleave
        _pack_padded_sequence
        """
    )
)

# -- Created tensors and random numbers

CREATED_LIKE = _names("zeros_like ones_like full_like empty_like rand_like randn_like randint_like")
CREATED_NEW = _names("new_zeros new_ones new_full new_empty new_empty_strided")
# Operators that read only the shape of their argument. In place, they overwrite it.
CREATED = (
    CREATED_LIKE
    | CREATED_NEW
    | _names("zero fill uniform normal_functional exponential geometric cauchy log_normal random")
)
UNINITIALISED = _names("empty empty_strided empty_like new_empty new_empty_strided")
UNIFORM = _names("rand rand_like uniform")
NORMAL = _names("randn randn_like normal normal_functional")
INTEGERS = _names("randint randint_like random")
RANDOM = (
    UNIFORM
    | NORMAL
    | INTEGERS
    | _names(
        """
        bernoulli binomial cauchy exponential geometric log_normal multinomial native_dropout
        poisson randperm
        """
    )
)
