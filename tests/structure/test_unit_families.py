"""Networks of other people are pruned by units, and the compacted network is what was kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from synflow_pl import compact, diagnose, prune
from synflow_pl.pruners import SynFlow


def torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision import models

        network: nn.Module = getattr(models, name)(num_classes=10)
        return network

    return make


def timm(name: str, **options: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        package = pytest.importorskip("timm")
        network: nn.Module = package.create_model(name, num_classes=10, **options)
        return network

    return make


NETWORKS = {
    "squeeze and excitation": torchvision("mobilenet_v3_small"),
    "shuffled channels": torchvision("shufflenet_v2_x0_5"),
    "concatenation": torchvision("squeezenet1_1"),
    "grouped convolutions": torchvision("regnet_x_400mf"),
    "attention": timm("vit_tiny_patch16_224", img_size=64),
    "ghost modules": timm("ghostnet_100"),
    "branches of several resolutions": timm("hrnet_w18_small"),
}


SLOW = ("grouped convolutions", "branches of several resolutions", "ghost modules")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NETWORKS],
)
def test_half_of_the_flops_is_kept_in_whole_units_on_a_path(name: str) -> None:
    torch.manual_seed(0)
    network, shape = NETWORKS[name]().eval(), (3, 64, 64)
    masks = prune(
        network, SynFlow(), granularity="unit", flops=0.5, rounds="auto", input_shape=shape
    )
    diagnosis = diagnose(network, masks, input_shape=shape)
    assert diagnosis.alive
    assert 0.45 < diagnosis.sparse_flops / diagnosis.flops <= 0.5
    small = compact(network, masks, input_shape=shape).eval()
    left = {key: value for key, value in small.named_parameters() if key in masks}
    emptied = sum(not bool(mask.any()) for mask in masks.values())
    size = sum(value.numel() for value in left.values())
    # A layer of which no unit is kept has one in the smaller network.
    assert size == masks.kept if not emptied else masks.kept < size < 1.02 * masks.kept
    images = torch.randn(2, *shape)
    with torch.no_grad():
        torch.testing.assert_close(small(images), network(images), rtol=1e-3, atol=1e-5)
