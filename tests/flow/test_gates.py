"""Gates: which of two multiplied signals becomes a constant, with sums computed by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from synflow_pl import Masks, prune
from synflow_pl.diagnosis import diagnose
from synflow_pl.flow import LinearNetwork, example_of, linearise
from synflow_pl.flow.builder import Builder
from synflow_pl.flow.rules import apply_rule
from synflow_pl.graph.trace import Graph, Operation, Value
from synflow_pl.networks import FC
from synflow_pl.prunable_parameters import prunable
from synflow_pl.pruners import SynFlow
from tests.flow.at_cuts import conservation_error


def linear_network_of(network: nn.Module, shape: tuple[int, ...]) -> LinearNetwork:
    return linearise(network, example_of(network, shape, None))


def scores(network: nn.Module, shape: tuple[int, ...]) -> tuple[float, dict[str, Tensor]]:
    """Return R and the scores, not rescaled."""
    linear_network = linear_network_of(network, shape)
    linear_network._cut_before = {}
    weights = {
        name: p.detach().abs()
        for name, p in prunable(network).items()
        if name in linear_network.weights
    }
    gradients = linear_network.gradients(weights)
    return linear_network.flow(weights).item(), {
        name: weights[name] * gradients[name] for name in weights
    }


def fill(layer: nn.Module, *rows: list[float]) -> None:
    layer.weight.data = torch.tensor(rows).view_as(layer.weight)


class Excite(nn.Module):
    """Squeeze-excite on two channels."""

    def __init__(self, bound: Callable[[Tensor], Tensor], swapped: bool = False) -> None:
        super().__init__()
        self.conv, self.squeeze, self.head = (
            nn.Conv2d(1, 2, 1, bias=False),
            nn.Conv2d(2, 2, 1),
            nn.Linear(2, 1, bias=False),
        )
        self.bound, self.swapped = bound, swapped
        fill(self.conv, [3.0, -5.0])
        fill(self.head, [7.0, 11.0])

    def forward(self, images: Tensor) -> Tensor:
        signal = self.conv(images).relu()
        gate = self.bound(self.squeeze(signal.mean((2, 3), keepdim=True)))
        signal = gate * signal if self.swapped else signal * gate
        return self.head(signal.mean((2, 3)))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    "bound",
    [
        torch.sigmoid,
        F.hardsigmoid,
        lambda gate: F.relu6(gate + 3) / 6,
        lambda gate: 1 + torch.tanh(gate),
        lambda gate: gate.softmax(1),
        lambda gate: 2 - gate.sigmoid(),
    ],
    ids=["sigmoid", "hardsigmoid", "relu6", "one plus tanh", "softmax", "two minus sigmoid"],
)
def test_squeeze_excite_counts_as_one_for_any_function_order_and_size(
    bound: Callable[..., Tensor], swapped: bool, size: int
) -> None:
    total, actual = scores(Excite(bound, swapped), (1, size, size))
    # R = 7 * 3 + 11 * 5, since the mean of a constant image is one pixel; no flow passes the
    # squeeze.
    assert total == pytest.approx(76)
    torch.testing.assert_close(actual["conv.weight"].flatten(), torch.tensor([21.0, 55.0]))
    assert actual.keys() == {"conv.weight", "head.weight"}


def test_without_a_bounded_function_the_broadcast_signal_is_the_gate() -> None:
    total, actual = scores(Excite(lambda gate: gate, swapped=True), (1, 2, 2))
    assert total == pytest.approx(76)
    assert "squeeze.weight" not in actual


BY_HAND: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: x * x.sigmoid(),
    "silu, turned round": lambda x: x.sigmoid() * x,
    "silu from exp": lambda x: x / (1 + (-x).exp()),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "hard-swish": lambda x: x * F.relu6(x + 3) / 6,
    "hard-swish of a clamp": lambda x: (x + 3).clamp(0, 6) * x / 6 * 6 / 6 * 6,
    "gelu of erf": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)) * 2,
    "gelu of tanh": lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3))) * 2,
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "relu of a mask": lambda x: x * (x > 0),
    "relu of where": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "times a constant of its shape": lambda x: x * torch.full_like(x, 3.0),
    "gate from -1 to 1": lambda x: F.hardtanh(x) * x,
    "square": lambda x: x * x,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_nonlinearity_written_by_hand_is_the_identity(name: str) -> None:
    class ByHand(nn.Module):
        def forward(self, signal: Tensor) -> Tensor:
            return BY_HAND[name](signal)

    def shares(network: nn.Module) -> Tensor:
        flat = torch.cat([score.flatten() for score in scores(network, (1, 3, 3))[1].values()])
        return flat / flat.sum()

    network = FC((1, 3, 3), depth=3, width=5)
    other = FC((1, 3, 3), depth=3, width=5, nonlinearity=ByHand)
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(shares(other), shares(network))


class TwoHalves(nn.Module):
    """A linear layer whose outputs are two signals that are multiplied."""

    def __init__(self, how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.head, self.how = (
            nn.Linear(1, 2, bias=False),
            nn.Linear(1, 1, bias=False),
            how,
        )
        fill(self.layer, [3.0], [5.0])
        fill(self.head, [2.0])

    def forward(self, signal: Tensor) -> Tensor:
        return self.head(self.how(*self.layer(signal).chunk(2, 1)))


@pytest.mark.parametrize(
    ("how", "carries"),
    [
        (lambda a, b: F.glu(torch.cat([a, b], 1), 1), 0),
        (lambda a, b: a * b.sigmoid(), 0),
        (lambda a, b: b * a.sigmoid(), 1),
        (lambda a, b: F.silu(a) * b, 1),  # SwiGLU
        (lambda a, b: a * F.gelu(b), 0),  # GEGLU
        (lambda a, b: torch.tanh(a) * torch.sigmoid(b), 0),  # WaveNet
        # MambaOut: the gate is a, although b passes a layer.
        (lambda a, b: F.gelu(a) * (b + F.linear(b, torch.ones(1, 1))) / 2, 1),
        (lambda a, b: a * F.linear(F.gelu(a), torch.ones(1, 1)), 0),  # large-kernel attention
        (lambda a, b: F.gelu(a) * F.linear(F.gelu(a), torch.ones(1, 1)), 0),
        (lambda a, b: a * b, 0),
        (lambda a, b: a / b, 0),
        (lambda a, b: torch.addcmul(torch.zeros(1), a, b), 0),
    ],
    ids=[
        "glu",
        "sigmoid",
        "sigmoid first",
        "swiglu",
        "geglu",
        "wavenet",
        "mambaout",
        "made from it",
        "made from it, activated",
        "product",
        "quotient",
        "addcmul",
    ],
)
def test_the_gated_signal_carries_the_flow_and_the_rows_of_the_gate_carry_none(
    how: Callable[..., Tensor], carries: int
) -> None:
    total, actual = scores(TwoHalves(how), (1,))
    row = [3.0, 5.0][carries]
    assert total == 2 * row
    assert actual["layer.weight"].flatten().tolist() == [
        2 * row if index == carries else 0.0 for index in (0, 1)
    ]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_signal_computed_from_the_whole_of_which_the_other_is_a_part_is_the_gate(
    swapped: bool,
) -> None:
    class MadeFrom(nn.Module):
        """u * (norm and mix v), with u and v the halves of one GELU: gMLP's spatial gating unit."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm, self.mix = (
                nn.Linear(1, 2, bias=False),
                nn.LayerNorm(1),
                nn.Linear(1, 1),
            )
            fill(self.layer, [3.0], [5.0])

        def forward(self, signal: Tensor) -> Tensor:
            left, right = F.gelu(self.layer(signal)).chunk(2, 1)
            right = self.mix(self.norm(right))
            return right * left if swapped else left * right

    total, actual = scores(MadeFrom(), (1,))
    assert total == 3
    assert actual["layer.weight"].flatten().tolist() == [3.0, 0.0]


def test_layer_scale_is_a_gain_and_counts_as_ones_and_is_named_if_it_is_zero() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.gamma = (
                nn.Linear(2, 2, bias=False),
                nn.Parameter(torch.tensor([[0.5, -2.0]])),
            )
            fill(self.layer, [1.0, 1.0], [1.0, 1.0])

        def forward(self, signal: Tensor) -> Tensor:
            return signal + self.gamma * self.layer(signal)

    network = Scaled()
    assert scores(network, (2,))[1]["layer.weight"].tolist() == [[0.5, 0.5], [2.0, 2.0]]
    assert linear_network_of(network, (2,)).all_zero == frozenset()
    nn.init.zeros_(network.gamma)
    assert scores(network, (2,))[1]["layer.weight"].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert linear_network_of(network, (2,)).all_zero == {"gamma"}


class Attention(nn.Module):
    """One head of width one over three tokens: queries 5, keys 7, values 3, projection 2."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.qkv, self.proj, self.how = (
            nn.Linear(1, 3, bias=False),
            nn.Linear(1, 1, bias=False),
            how,
        )
        self.table = nn.Parameter(torch.randn(3, 3))
        fill(self.qkv, [5.0], [7.0], [-3.0])
        fill(self.proj, [2.0])

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unsqueeze(1).chunk(3, -1)
        if self.how == "fused":
            mixed = F.scaled_dot_product_attention(query, key, value)
        elif self.how == "fused with a bias":
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self.table)
        elif self.how == "causal":
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        elif self.how == "causal by hand":
            masked = (query @ key.transpose(-1, -2)).masked_fill(
                torch.ones(3, 3).triu(1).bool(), -torch.inf
            )
            mixed = masked.softmax(-1) @ value
        elif self.how == "by hand":
            mixed = (query @ key.transpose(-1, -2) + self.table).softmax(-1) @ value
        elif self.how == "values first":
            mixed = (
                value.transpose(-1, -2)
                @ (query @ key.transpose(-1, -2)).softmax(-1).transpose(-1, -2)
            ).transpose(-1, -2)
        elif self.how == "linear, turned round":
            mixed = ((value.mT @ key.relu()) @ query.relu().mT).mT
        elif self.how == "linear, of plain signals":
            mixed = ((key.mT @ value).mT @ query.mT).mT
        else:
            mixed = query.relu() @ (key.relu().transpose(-1, -2) @ value)
        return self.proj(mixed.squeeze(1))


@pytest.mark.parametrize(
    "how",
    [
        "fused",
        "fused with a bias",
        "by hand",
        "values first",
        "linear",
        "linear, turned round",
        "linear, of plain signals",
        "causal",
        "causal by hand",
    ],
)
def test_attention_averages_over_tokens_and_the_flow_goes_through_the_values(how: str) -> None:
    total, actual = scores(Attention(how), (3, 1))
    # Each of three tokens receives the mean of three equal values, so R = 3 * (3 * 2), and all of
    # it passes the row of the values.
    assert total == pytest.approx(18)
    torch.testing.assert_close(actual["qkv.weight"].flatten(), torch.tensor([0.0, 0.0, 18.0]))
    assert actual["proj.weight"].item() == pytest.approx(18)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_attention_averages_in_any_precision(dtype: torch.dtype) -> None:
    network = Attention("by hand").to(dtype)
    weights = {
        name: parameter.detach().abs().double() for name, parameter in prunable(network).items()
    }
    assert conservation_error(linear_network_of(network, (3, 1)), weights) < 1e-6


@pytest.mark.parametrize("how", ["causal", "causal by hand"])
def test_masked_pairs_are_not_part_of_the_mean(how: str) -> None:
    class First(Attention):
        def forward(self, tokens: Tensor) -> Tensor:
            # The first token attends to itself alone, so the scale of the others does not matter.
            return super().forward(tokens * torch.tensor([1.0, 100.0, 100.0]).view(3, 1))[:, :1]

    assert scores(First(how), (3, 1))[0] == pytest.approx(6)


def test_only_the_rows_of_the_values_carry_flow_in_a_fused_projection() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(2, 2, bias=False, batch_first=True)
            self.attention.in_proj_weight.data = torch.tensor(
                [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [1.0, -2.0], [3.0, 4.0]]
            )
            self.attention.out_proj.weight.data = torch.tensor([[1.0, 0.0], [0.0, -1.0]])

        def forward(self, tokens: Tensor) -> Tensor:
            return self.attention(tokens, tokens, tokens, need_weights=False)[0]

    total, actual = scores(Block(), (3, 2))
    assert total == pytest.approx(3 * (1 + 2 + 3 + 4))
    expected = torch.tensor([[0.0, 0.0]] * 4 + [[3.0, 6.0], [9.0, 12.0]])
    torch.testing.assert_close(actual["attention.in_proj_weight"], expected)


def test_a_transformer_encoder_layer_is_traced_without_its_fused_kernel() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    assert torch.backends.mha.get_fastpath_enabled()
    linear_network = linear_network_of(layer, (3, 4))
    assert linear_network.weights == prunable(layer).keys()
    assert linear_network.notes == ()
    assert torch.backends.mha.get_fastpath_enabled()


def test_grouped_queries_share_a_head_of_values() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.value = nn.Linear(1, 4, bias=False), nn.Linear(1, 2, bias=False)
            fill(self.value, [3.0], [5.0])

        def forward(self, tokens: Tensor) -> Tensor:
            query, value = self.query(tokens).mT.unsqueeze(-1), self.value(tokens).mT.unsqueeze(-1)
            return F.scaled_dot_product_attention(query, value, value, enable_gqa=True)

    assert scores(Grouped(), (2, 1))[0] == pytest.approx(2 * (3 + 3 + 5 + 5))


KERNELS = {
    "_scaled_dot_product_flash_attention_for_cpu": {},
    "_scaled_dot_product_flash_attention": {},
    "_scaled_dot_product_efficient_attention": {"attn_bias": None, "compute_log_sumexp": False},
    "_scaled_dot_product_cudnn_attention": {"attn_bias": None, "compute_log_sumexp": False},
    "_scaled_dot_product_fused_attention_overrideable": {},
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_fused_attention_kernel_is_the_mean_of_the_values(kernel: str, causal: bool) -> None:
    # Most of these kernels run on a GPU only; the rule reads the schema, not the result.
    target = getattr(torch.ops.aten, kernel).default
    query, key, value = torch.randn(3, 1, 1, 2, 1).unbind(0)
    given = {
        "query": Value(0),
        "key": Value(1),
        "value": Value(2),
        "is_causal": causal,
        **KERNELS[kernel],
    }
    args = [
        given.get(argument.name) for argument in target._schema.arguments if not argument.kwarg_only
    ]
    output = torch.zeros(1, 1, 2, 1)
    graph = Graph(
        (Value(2),),
        {},
        (Value(3),),
        [Operation(target, tuple(args), {}, (Value(3),))],
        [query, key, value, output],
    )
    builder = Builder(graph, (), ())
    assert builder.visit(graph.operations[0])
    apply_rule(builder, graph.operations[0])
    (node,) = builder.nodes
    mean = builder._constants[node.args[0].number]
    expected = [[1.0, 0.0], [0.5, 0.5]] if causal else [[0.5, 0.5], [0.5, 0.5]]
    assert mean.view(2, 2).tolist() == expected


class Deformable(nn.Module):
    """A convolution whose offsets and modulation factors depend on its input, or a plain one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.offsets = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 18, 3, padding=1)
        self.factors, self.kernel = (
            nn.Conv2d(8, 9, 3, padding=1),
            nn.Conv2d(8, 6, 3, padding=1, bias=False),
        )
        self.last, self.kind = nn.Conv2d(6, 2, 1), kind

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if self.kind == "plain":
            return self.last(self.kernel(x))
        factors = self.factors(x).sigmoid() if self.kind == "modulated" else None
        return self.last(
            deform_conv2d(x, self.offsets(x), self.kernel.weight, padding=1, mask=factors)
        )


@pytest.mark.parametrize("kind", ["deformable", "modulated"])
def test_a_deformable_convolution_passes_the_flow_of_a_plain_one(kind: str) -> None:
    torch.manual_seed(0)
    plain = Deformable("plain")
    other = copy.deepcopy(plain)
    other.kind = kind
    pruner = SynFlow()
    right, masks = (
        prune(each, pruner, density=0.3, rounds=4, input_shape=(3, 9, 9)) for each in (plain, other)
    )
    assert all(torch.equal(masks[name], right[name]) for name in right)
    assert not any("without a rule" in note for note in pruner.notes)


def test_offsets_are_effective_if_the_kernel_that_they_move_is() -> None:
    network = Deformable("modulated")
    masks = Masks(
        {
            name: torch.ones_like(weight, dtype=torch.bool)
            for name, weight in prunable(network).items()
        }
    )
    assert all(
        layer.effective == layer.total
        for layer in diagnose(network, masks, input_shape=(3, 9, 9)).layers
    )
    masks["kernel.weight"].zero_()
    assert not any(
        layer.effective for layer in diagnose(network, masks, input_shape=(3, 9, 9)).layers
    )
    masks["kernel.weight"].fill_(True)
    masks["offsets.weight"].zero_()
    effective = {
        layer.name: layer.effective
        for layer in diagnose(network, masks, input_shape=(3, 9, 9)).layers
    }
    assert effective["offsets.weight"] == 0
    assert effective["factors.weight"] == masks["factors.weight"].numel()
