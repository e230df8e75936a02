"""Tests that prune, diagnose and compact one network of each of timm's families.

Each network has its own input size.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from synflow_pl import Compaction, diagnose, prune
from synflow_pl.flow import example_of
from synflow_pl.pruners import SynFlow

FAMILIES = tuple(
    """
    cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 crossvit_tiny_240 cs3darknet_focus_s
    cspresnet50 darknet17 davit_tiny deit_tiny_patch16_224 densenet121 dla46x_c dpn48b eca_nfnet_l0
    edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientvim_m1
    efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8 fbnetc_100
    focalnet_tiny_srf gcvit_xxtiny gernet_s ghostnet_050 gmixer_12_224 gmlp_ti16_224 halonet26t
    hardcorenas_b hgnetv2_b0 hiera_tiny_224 hrnet_w18_small inception_next_atto inception_v3
    iformer_t lcnet_035 legacy_seresnet18 legacy_xception levit_128s mambaout_femto mixer_s32_224
    mixnet_s mnasnet_small mobilenetv2_035 mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0
    mobilevit_xxs mvitv2_tiny nest_tiny nf_regnet_b0 nfnet_l0 pit_ti_224 poolformerv2_s12 pvt_v2_b0
    rdnet_tiny regnetx_002 regnety_002 repghostnet_050 repvgg_a0 repvit_m1 res2net50_14w_8s
    resmlp_12_224 resnest14d resnet18 resnetv2_18 resnext26ts rexnet_100 selecsls42 semnasnet_075
    sequencer2d_s shvit_s1 skresnet18 spnasnet_100 starnet_s050 swiftformer_xs
    swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 tf_efficientnetv2_b0 tiny_vit_5m_224 tinynet_e
    tresnet_m twins_svt_small vgg11_bn visformer_tiny vit_tiny_patch16_224 volo_d1_224
    wide_resnet50_2 xception41p xcit_nano_12_p8_224
    """.split()
)


@torch.no_grad()
def randomise(network: nn.Module) -> None:
    """Change biases, gains and running statistics at random."""
    for parameter in network.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) / 10)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_compaction_keeps_the_function_of_a_network_of_each_timm_family(name: str) -> None:
    torch.manual_seed(0)
    network = pytest.importorskip("timm").create_model(name, pretrained=False).eval()
    shape = tuple(network.default_cfg["input_size"])
    masks = prune(network, SynFlow(), density=0.1, rounds=4, input_shape=shape)
    diagnosis = diagnose(network, masks, input_shape=shape)
    assert abs(diagnosis.density - 0.1) < 1e-3
    network = network.double()
    randomise(network)
    masks.apply(network)
    compaction = Compaction(network, masks, example_of(network, shape, None))
    assert not any("nothing was taken out" in note for note in compaction.notes)
    images: Tensor = torch.randn(1, *shape, dtype=torch.float64)
    with torch.no_grad():
        expected, actual = network(images), compaction.network.eval()(images)
    assert float((expected - actual).abs().max()) <= 1e-9 * float(expected.abs().max())
