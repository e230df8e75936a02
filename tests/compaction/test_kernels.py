"""Tests of convolutions whose kernel is computed or constant, and of parametrised layers.

Operations that no rule covers keep their units.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm
from torch.nn.utils import prune as torch_prune

from synflow_pl import Compaction, Masks, prune
from synflow_pl.prunable_parameters import prunable
from synflow_pl.pruners import SynFlow

Kernel = Callable[["Grouped", Tensor], Tensor]


class Grouped(nn.Module):
    """A grouped convolution with a computed kernel before layers whose units can be removed."""

    def __init__(
        self, kernel: Kernel | None = None, groups: int = 8, transposed: bool = False
    ) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.d = (nn.ConvTranspose2d if transposed else nn.Conv2d)(8, 8, 3, groups=groups)
        self.fc, self.mid, self.last = nn.Linear(8, 4), nn.Linear(4, 16), nn.Linear(16, 3)
        self.register_buffer("blur", torch.full((1, 1, 3, 3), 1 / 9))
        self.kernel, self.groups = kernel, groups
        self.convolve = F.conv_transpose2d if transposed else F.conv2d

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        h = (
            self.d(h)
            if self.kernel is None
            else self.convolve(h, self.kernel(self, self.d.weight), self.d.bias, groups=self.groups)
        )
        return self.last(self.mid(self.fc(h.relu().mean((2, 3))).relu()).relu())


def standardised(_: Grouped, weight: Tensor) -> Tensor:
    return F.batch_norm(weight.reshape(1, len(weight), -1), None, None, training=True).reshape_as(
        weight
    )


def straight_through(_: Grouped, weight: Tensor) -> Tensor:
    return weight + ((weight * 8).round() / 8 - weight).detach()


def per_channel(_: Grouped, weight: Tensor) -> Tensor:
    scale, zero = torch.full((8,), 0.01, dtype=torch.float32), torch.zeros(8, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -128, 127)


KERNELS: dict[str, Callable[[], nn.Module]] = {
    "as it is": lambda: Grouped(lambda _, w: w),
    "normalised": lambda: Grouped(lambda _, w: w / w.norm()),
    "standardised": lambda: Grouped(standardised),
    "standardised in groups of two": lambda: Grouped(standardised, groups=4),
    "quantised": lambda: Grouped(
        lambda _, w: torch.fake_quantize_per_tensor_affine(w, 0.01, 0, -128, 127)
    ),
    "quantised by channel": lambda: Grouped(per_channel),
    "quantised straight through": lambda: Grouped(straight_through),
    "a constant blur": lambda: Grouped(
        lambda _, w: torch.full((1, 1, 3, 3), 1 / 9, dtype=w.dtype).expand(8, -1, -1, -1)
    ),
    "a buffer's blur": lambda: Grouped(lambda n, w: n.blur.repeat(8, 1, 1, 1)),
    "flipped": lambda: Grouped(lambda _, w: w.flip(-1)),
    "put together": lambda: Grouped(lambda _, w: torch.cat([w[:4], w[4:]])),
    "a softmax": lambda: Grouped(lambda _, w: w.flatten(1).softmax(1).view_as(w)),
    "a product": lambda: Grouped(
        lambda _, w: torch.einsum("oihw,hk->oikw", w, torch.eye(3, dtype=w.dtype))
    ),
    "transposed and absolute": lambda: Grouped(lambda _, w: w.abs(), transposed=True),
}


def random_masks(network: nn.Module) -> Masks:
    """Return masks that remove rows and entries at random."""
    generator = torch.Generator().manual_seed(1)
    masks = {}
    for name, weight in prunable(network).items():
        rows = torch.rand(len(weight), *[1] * (weight.dim() - 1), generator=generator) < 0.7
        masks[name] = rows & (torch.rand(weight.shape, generator=generator) < 0.8)
    return Masks(masks)


def hold(network: nn.Module, training: bool) -> Compaction:
    """Compact a network and assert that it got smaller and computes the same function."""
    masks, x = random_masks(network), torch.randn(4, 3, 8, 8)
    compaction = Compaction(network, masks, (x[:1],), training=training)
    assert not any("nothing was taken out" in note for note in compaction.notes)
    masks.apply(network)
    torch.testing.assert_close(compaction.network(x), network(x), rtol=1e-4, atol=1e-5)
    return compaction


@pytest.mark.parametrize("kind", KERNELS)
def test_compaction_with_a_computed_or_constant_grouped_kernel_keeps_the_function(
    kind: str,
) -> None:
    torch.manual_seed(0)
    compaction = hold(KERNELS[kind]().eval(), training=False)
    assert compaction.network.mid.out_features < 16


class Wide(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def wrapped(wrap: Callable[[nn.Module], object], *names: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        network = Grouped()
        for name in names:
            wrap(getattr(network, name))
        return network

    return build


WRAPS: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of the last dimension": lambda layer: parametrizations.weight_norm(
        layer, dim=layer.weight.dim() - 1
    ),
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": weight_norm,
    "old spectral_norm": spectral_norm,
    "torch's prune": lambda layer: torch_prune.l1_unstructured(layer, "weight", 0.5),
    "torch's prune by rows": lambda layer: torch_prune.ln_structured(layer, "weight", 0.5, 2, 0),
    "torch's prune of biases": lambda layer: torch_prune.l1_unstructured(layer, "bias", 0.5),
    "a parametrisation": lambda layer: parametrize.register_parametrization(
        layer, "weight", Wide()
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("names", [("d",), ("mid",), ("a", "d", "fc", "mid")], ids="+".join)
@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated.*")
def test_compaction_with_parametrised_layers_keeps_the_function(
    wrap: str, names: tuple[str, ...], training: bool
) -> None:
    torch.manual_seed(0)
    network = wrapped(WRAPS[wrap], *names)().eval()
    masks, x = random_masks(network), torch.randn(4, 3, 8, 8)
    compaction = Compaction(network, masks, (x[:1],), training=training)
    masks.apply(network)
    torch.testing.assert_close(compaction.network(x), network(x), rtol=1e-4, atol=1e-5)
    compaction.network.train()(x).sum().backward()


def test_depthwise_convolutions_with_a_parametrised_kernel_get_smaller() -> None:
    torch.manual_seed(0)
    compaction = hold(wrapped(WRAPS["a parametrisation"], "d", "fc")().eval(), training=False)
    assert (
        compaction.network.d.groups
        == compaction.network.d.in_channels
        == compaction.network.d.out_channels
        < 8
    )


@pytest.mark.parametrize(
    "name", ["nf_regnet_b0", pytest.param("eca_nfnet_l0", marks=pytest.mark.slow)]
)
def test_compaction_with_standardised_grouped_kernels_keeps_the_function(name: str) -> None:
    torch.manual_seed(0)
    network = pytest.importorskip("timm").create_model(name, pretrained=False).double().eval()
    masks = prune(network, SynFlow(), density=0.1, rounds=2, input_shape=(3, 64, 64))
    compaction = Compaction(network, masks, (torch.ones(1, 3, 64, 64, dtype=torch.float64),))
    assert not any("nothing was taken out" in note for note in compaction.notes)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(compaction.network(x), network(x), rtol=1e-9, atol=1e-9)
