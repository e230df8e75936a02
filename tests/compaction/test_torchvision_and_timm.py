"""Tests of compaction of networks of torchvision and timm."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from synflow_pl import prune
from synflow_pl.pruners import SynFlow
from tests.compaction.checked import check, size


def timm(name: str) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("timm").create_model(name, pretrained=False)


def densenet() -> nn.Module:
    """Return a short DenseNet; with 121 layers, single and double precision differ by 1e-4."""
    return torchvision.models.DenseNet(12, (3, 3, 3), 16, num_classes=10)


def group_normalised() -> nn.Module:
    resnet = torchvision.models.resnet
    return resnet.ResNet(
        resnet.BasicBlock,
        [1, 1, 1, 1],
        num_classes=10,
        norm_layer=lambda width: nn.GroupNorm(8, width),
    )


# By feature: a function that builds the network, the height and width of its images, the largest
# fraction of its parameters that may be kept, and a part of the notes.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, float, str]] = {
    "depthwise convolutions, squeeze and excitation": (timm("mobilenetv3_small_050"), 64, 0.25, ""),
    "groups of several channels": (
        timm("regnetx_002"),
        64,
        0.6,
        "of a grouped convolution with several channels to a group",
    ),
    "concatenation": (densenet, 32, 0.95, ""),
    "a shuffle of channels": (
        torchvision.models.shufflenet_v2_x0_5,
        64,
        0.2,
        "split or mixed by a change of shape",
    ),
    "attention": (timm("test_vit"), 160, 0.75, "LayerNorm's statistics"),
    "GroupNorm": (group_normalised, 32, 1.0, "GroupNorm's statistics"),
}


@pytest.mark.parametrize("feature", NETWORKS)
def test_compaction_keeps_the_function_of_networks_of_other_libraries(feature: str) -> None:
    torch.manual_seed(0)
    build, side, fraction, note = NETWORKS[feature]
    network = build()
    whole = size(network)
    masks = prune(network, SynFlow(), density=0.05, rounds=10, input_shape=(3, side, side))
    checked = check(network.double(), masks, (3, side, side))
    checked.hold()
    assert size(checked.compaction.network) <= fraction * whole
    assert note in "; ".join(checked.compaction.notes)
