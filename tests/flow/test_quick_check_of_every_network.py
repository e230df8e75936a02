"""SynFlow prunes each network of ``any_network.csv`` in two rounds, and some at native size.

This is part of the default suite, so that a change to tracing, rules or selection is tested on all
networks. The slow tests of ``test_any_network.py`` compare flow, output and reports in full.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
import torchvision
from torch import nn

from synflow_pl import prune
from synflow_pl.pruners import SynFlow
from synflow_pl.schedules import kept_weights
from tests.flow import any_network

DENSITY = Fraction(1, 10)
# Networks of each family of torchvision, and those of timm for which any_network.csv has a smaller
# input than the native one.
NATIVE = """
    torchvision/alexnet torchvision/convnext_tiny torchvision/densenet121
    torchvision/efficientnet_b0 torchvision/efficientnet_v2_s torchvision/googlenet
    torchvision/inception_v3 torchvision/mnasnet0_5 torchvision/mobilenet_v2
    torchvision/mobilenet_v3_large torchvision/regnet_x_400mf torchvision/regnet_y_400mf
    torchvision/resnet18 torchvision/resnet50 torchvision/resnext50_32x4d
    torchvision/shufflenet_v2_x1_0 torchvision/squeezenet1_0 torchvision/swin_t
    torchvision/swin_v2_t torchvision/vgg11_bn torchvision/vit_b_16 timm/coat_tiny timm/convit_tiny
    timm/convmixer_768_32 timm/crossvit_tiny_240 timm/deit_tiny_patch16_224 timm/edgenext_xx_small
    timm/efficientformerv2_s0 timm/efficientvit_b0 timm/focalnet_tiny_srf timm/ghostnet_050
    timm/gmlp_ti16_224 timm/halonet_h1 timm/levit_128s timm/mobilevit_xxs timm/mvitv2_tiny
    timm/nest_tiny timm/poolformerv2_s12 timm/pvt_v2_b0 timm/resnest14d timm/swinv2_tiny_window8_256
    timm/test_convnext timm/test_mambaout timm/test_nfnet timm/tnt_s_legacy_patch16_224
    timm/twins_svt_small timm/visformer_tiny timm/volo_d1_224 timm/xcit_nano_12_p8_224
""".split()


@pytest.fixture(autouse=True)
def _memory_is_returned() -> Iterator[None]:
    yield
    gc.collect()


def at_native_size(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the network at initialisation and its native input shape."""
    library, _, model = name.partition("/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library == "torchvision":
            size = 299 if model == "inception_v3" else 224
            options = {"init_weights": False} if model in ("googlenet", "inception_v3") else {}
            return torchvision.models.get_model(model, weights=None, **options), (3, size, size)
        import timm

        network = timm.create_model(model, pretrained=False)
        return network, tuple(network.pretrained_cfg["input_size"])


def check(network: nn.Module, shape: tuple[int, ...]) -> None:
    # Two rounds may disconnect the network; the slow tests use as many rounds as the table says.
    masks = prune(
        network, SynFlow(), density=DENSITY, rounds=2, input_shape=shape, on_collapse="ignore"
    )
    assert masks.kept == kept_weights(masks.total, DENSITY)
    for parameter, mask in masks.parameters(network):
        assert not torch.any(parameter[~mask])


@pytest.mark.parametrize("name", any_network.names())
def test_synflow_prunes_the_network_in_two_rounds(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed")
    check(*any_network.build(name))


@pytest.mark.parametrize("name", NATIVE)
def test_synflow_prunes_the_network_at_its_native_size(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    check(*at_native_size(name))


def family(name: str) -> str:
    """Return the first word of a torchvision network's name, without digits."""
    return "".join(
        character
        for character in name.removeprefix("torchvision/").split("_")[0]
        if character.isalpha()
    )


def test_a_network_of_every_torchvision_family_is_pruned_at_its_native_size() -> None:
    families = {family(name) for name in any_network.names() if name.startswith("torchvision")}
    # The other test prunes MaxViT at its native size, the only one that it accepts; "wide" stands
    # for wide ResNets.
    assert families - {family(name) for name in NATIVE} == {"maxvit", "wide"}
