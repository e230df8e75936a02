"""Tests of FLOPs against counts by hand: two for each kept weight and position of its use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from synflow_pl import Masks, diagnose
from synflow_pl.networks import VGG, TorchVision
from synflow_pl.prunable_parameters import prunable


def keeping(network: nn.Module, kept: int) -> Masks:
    """Return masks that keep the first ``kept`` weights of each layer."""
    return Masks(
        {
            name: (torch.arange(w.numel()) < kept).view(w.shape)
            for name, w in prunable(network).items()
        }
    )


@pytest.mark.parametrize(
    ("layer", "shape", "weights", "positions"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (3, 5, 5), 108, 25),
        (nn.Conv2d(3, 4, 3, padding=1, stride=2), (3, 5, 5), 108, 9),
        (
            nn.Conv2d(4, 6, 3, groups=2),
            (4, 5, 5),
            108,
            9,
        ),  # each unit reads two of the four channels
        (nn.Conv2d(4, 4, 3, groups=4), (4, 5, 5), 36, 9),
        (nn.Conv2d(2, 2, 3, dilation=2), (2, 5, 5), 36, 1),
        (nn.Conv1d(2, 3, 3), (2, 6), 18, 4),
        (nn.Conv3d(1, 2, 2), (1, 3, 3, 3), 16, 8),
        (
            nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
            (4, 3, 3),
            48,
            9,
        ),  # positions of the input, each of which is spread over a window
        (nn.Linear(2, 3), (2,), 6, 1),
        (nn.Linear(2, 3, bias=False), (5, 2), 6, 5),
    ],
)
def test_a_layer_does_two_flops_for_each_weight_and_position(
    layer: nn.Module, shape: tuple[int, ...], weights: int, positions: int
) -> None:
    network = nn.Sequential(layer)
    diagnosis = diagnose(network, keeping(network, 5), input_shape=shape)
    (result,) = diagnosis.layers
    assert result.total == weights
    assert (result.flops, result.sparse_flops) == (2 * weights * positions, 2 * 5 * positions)
    assert (diagnosis.flops, diagnosis.sparse_flops) == (result.flops, result.sparse_flops)


class Attend(nn.MultiheadAttention):
    """Attention with one head of width two: cross (two tokens to three) or self (three tokens)."""

    def __init__(self, across: bool) -> None:
        super().__init__(2, 1, batch_first=True)
        self.across = across

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(
            tokens[:, :2] if self.across else tokens, tokens, tokens, need_weights=False
        )[0]


@pytest.mark.parametrize("across", [False, True])
def test_the_sparse_flops_of_a_fused_projection_depend_on_the_rows_that_each_token_uses(
    across: bool,
) -> None:
    kept = torch.zeros(6, 2, dtype=torch.bool)
    kept[0] = kept[2, 0] = kept[4, 0] = True  # two weights of queries, one each of keys and values
    masks = Masks(
        {"in_proj_weight": kept, "out_proj.weight": torch.tensor([[True, False], [False, False]])}
    )
    diagnosis = diagnose(Attend(across), masks, input_shape=(3, 2))
    projections, out = diagnosis.layers
    num_queries = 2 if across else 3
    assert projections.flops == 2 * (4 * num_queries + 8 * 3)
    assert projections.sparse_flops == 2 * (2 * num_queries + 2 * 3)
    assert (out.flops, out.sparse_flops) == (2 * 4 * num_queries, 2 * num_queries)
    # Query times key and weights times value are dense: num_queries x 3 x 2 multiplications each.
    assert diagnosis.flops - projections.flops - out.flops == 2 * (num_queries * 3 * 2) * 2
    assert diagnosis.sparse_flops == diagnosis.flops - (
        projections.flops - projections.sparse_flops
    ) - (out.flops - out.sparse_flops)
    assert any("attention count as dense connections" in note for note in diagnosis.notes)


def test_layers_without_a_mask_are_counted() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    masks = Masks({"0.weight": torch.zeros(4, 3, dtype=torch.bool)})
    diagnosis = diagnose(network, masks, input_shape=(3,))
    assert (diagnosis.flops, diagnosis.sparse_flops) == (2 * (12 + 8), 2 * 8)


def test_a_layer_that_is_used_twice_counts_twice() -> None:
    layer = nn.Linear(2, 2)
    network = nn.Sequential(layer, nn.ReLU(), layer)
    (result,) = diagnose(network, keeping(network, 3), input_shape=(2,)).layers
    assert (result.flops, result.sparse_flops) == (16, 12)


@pytest.mark.parametrize(
    "network",
    [
        VGG(11),
        TorchVision("resnet18", input_shape=(3, 32, 32)),
        TorchVision("mobilenet_v3_small", input_shape=(3, 32, 32)),
        TorchVision("regnet_y_400mf", input_shape=(3, 32, 32)),
    ],
    ids=["vgg11", "resnet18", "mobilenet", "regnet"],
)
def test_the_dense_flops_of_a_network_are_what_torch_counts(network: nn.Module) -> None:
    masks = Masks({name: torch.rand(w.shape) < 0.1 for name, w in prunable(network).items()})
    diagnosis = diagnose(network, masks, input_shape=(3, 32, 32))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    assert (
        diagnosis.flops
        == counter.get_total_flops()
        == sum(layer.flops for layer in diagnosis.layers)
    )
    for layer in diagnosis.layers:
        assert layer.sparse_flops * layer.total == layer.flops * layer.kept


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(6, 4, batch_first=True, **options)
        self.last = nn.Linear(4 * (2 if self.rnn.bidirectional else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rnn(x)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2}, {"bidirectional": True, "num_layers": 2}, {"bias": False}]
)
@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_a_recurrent_layer_counts_each_weight_once_per_step_in_every_precision(
    kind: type[nn.RNNBase], gates: int, options: dict[str, Any], dtype: torch.dtype
) -> None:
    network = Recurrent(kind, **options).to(dtype)
    weights = sum(p.numel() for name, p in network.rnn.named_parameters() if "weight" in name)
    diagnosis = diagnose(network, keeping(network, 5), input_shape=(5, 6))
    assert diagnosis.flops == 2 * 5 * (weights + network.last.weight.numel())
    assert not any("FLOPs" in note for note in diagnosis.notes)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_deformable_convolution_counts_its_kernel_at_each_position(groups: int) -> None:
    ops = pytest.importorskip("torchvision.ops")

    class Deformable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.where, self.layer = (
                nn.Conv2d(3, 18, 3, padding=1),
                ops.DeformConv2d(3, 6, 3, padding=1, groups=groups),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, self.where(x))

    diagnosis = diagnose(
        Deformable(),
        Masks({"where.weight": torch.ones(18, 3, 3, 3, dtype=torch.bool)}),
        input_shape=(3, 4, 4),
    )
    assert diagnosis.flops == 2 * 16 * (27 * 18 + 27 // groups * 6)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda layer, x: torch.cdist(layer(x), x), "aten._cdist_forward"),
        (lambda layer, x: torch.fft.rfft(layer(x)).abs(), "aten._fft_r2c"),
        (lambda layer, x: torch.linalg.inv(layer(x)), "aten.linalg_inv_ex"),
        (
            lambda layer, x: nn.functional.bilinear(layer(x), x, torch.ones(2, 4, 4)),
            "aten._trilinear",
        ),
    ],
)
def test_an_operation_without_a_formula_is_named_in_a_note(function: Any, name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return function(self.layer, x + torch.eye(4))

    network = Net()
    diagnosis = diagnose(network, keeping(network, 16), input_shape=(4, 4))
    assert f"FLOPs leave out operations without a formula: {name}" in diagnosis.notes


def test_activations_normalisation_and_pooling_are_not_named_in_a_note() -> None:
    network = nn.Sequential(
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.MaxPool2d(2), nn.GroupNorm(2, 8)
        ),
        nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(2),
            nn.PixelShuffle(2),
            nn.Flatten(),
        ),
        nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 8), nn.GLU(), nn.Softmax(-1)),
    )
    assert not any(
        "FLOPs" in note
        for note in diagnose(network, keeping(network, 5), input_shape=(3, 8, 8)).notes
    )


def test_the_mask_of_a_repeated_weight_is_repeated_with_it() -> None:
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.layer.weight.flip(0).repeat(2, 1).t()

    network = Repeated()
    diagnosis = diagnose(network, keeping(network, 2), input_shape=(2,))
    assert (diagnosis.flops, diagnosis.sparse_flops) == (2 * 12, 2 * 4)
