import itertools

import pytest
import torch
import torchvision
from torch import nn

from synflow_pl.networks import TinyResNet

# Millions of parameters for CIFAR-100 according to weiaicunzai.
STATED = {18: 11.2, 34: 21.3, 50: 23.7, 101: 42.7, 152: 58.3}
# Millions of parameters in Zagoruyko & Komodakis 2016, Table 8 (ImageNet): WRN-18-2, WRN-34-2 and
# WRN-50-2-bottleneck.
WIDE = {18: 45.6, 34: 86.0, 50: 68.9}


def on_meta(depth: int, **options: int) -> TinyResNet:
    with torch.device("meta"):
        return TinyResNet(depth, **options)  # type: ignore[arg-type]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def with_small_stem(depth: int, width_factor: int) -> torchvision.models.ResNet:
    """Return torchvision's ResNet with a 3x3 stem of stride 1 and without its max pooling."""
    options = {"width_per_group": 64 * width_factor} if depth >= 50 else {}
    network = torchvision.models.get_model(f"resnet{depth}", num_classes=10, **options)
    network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


@pytest.mark.parametrize("depth", STATED)
def test_the_network_has_the_stated_number_of_parameters(depth: int) -> None:
    assert round(count(on_meta(depth, num_classes=100)) / 1e6, 1) == STATED[depth]


@pytest.mark.parametrize("depth", WIDE)
def test_the_wide_network_has_the_published_number_of_parameters(
    depth: int,
) -> None:
    # The stem has 64 * 3 * (49 - 9) fewer weights than ImageNet's, less than the last digit.
    assert round(count(on_meta(depth, width_factor=2, num_classes=1000)) / 1e6, 1) == WIDE[depth]


def test_the_network_published_as_wide_is_resnet18_with_gains_on_identity_shortcuts() -> None:
    # Identity shortcuts: both blocks of 64 channels, and the second blocks of 128, 256 and 512.
    gains = 2 * 64 + 128 + 256 + 512
    assert count(on_meta(18, num_classes=10)) + gains == 11_174_986
    assert count(on_meta(18, residual_gains=True, num_classes=10)) == 11_174_986
    # The wide network of this package has about four times as many.
    assert count(on_meta(18, width_factor=2, num_classes=10)) > 3.9 * 11_174_986


@pytest.mark.parametrize(
    ("depth", "width_factor"),
    [
        pytest.param(depth, width_factor, marks=pytest.mark.slow)
        if depth > 50
        else (depth, width_factor)
        for depth, width_factor in itertools.product(STATED, (1, 2))
        if width_factor == 1 or depth >= 50  # torchvision widens bottlenecks only
    ],
)
def test_outputs_with_copied_weights_are_those_of_torchvision(
    depth: int, width_factor: int
) -> None:
    ours, theirs = (
        TinyResNet(depth, width_factor, num_classes=10),
        with_small_stem(depth, width_factor),
    )  # type: ignore[arg-type]
    assert count(ours) == count(theirs)
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            if tensor.dim() == 1:
                # Make gains, shifts and statistics differ between channels.
                tensor.add_(0.1 * torch.rand_like(tensor))
    # Both networks register their modules in the same order.
    pairs = zip(ours.state_dict(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict(dict(pairs))
    images = torch.randn(2, 3, 32, 32)
    ours.eval(), theirs.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_width_factor_applies_to_both_convolutions_of_basic_blocks_but_not_to_the_stem() -> None:
    network = on_meta(18, width_factor=2)
    assert network.conv.weight.shape == (64, 3, 3, 3)
    assert network.blocks[0].conv1.weight.shape == (128, 64, 3, 3)
    assert network.blocks[0].shortcut[0].weight.shape == (128, 64, 1, 1)
    assert network.blocks[7].conv2.weight.shape == (1024, 1024, 3, 3)
    assert network.fc.weight.shape == (200, 1024)


def test_width_factor_applies_to_the_inner_convolutions_of_bottlenecks() -> None:
    network = on_meta(50, width_factor=2)
    assert network.blocks[0].conv2.weight.shape == (128, 128, 3, 3)
    assert network.blocks[0].conv3.weight.shape == (256, 128, 1, 1)
    assert network.fc.weight.shape == (200, 2048)


def test_the_stem_keeps_the_resolution_and_three_stages_halve_it() -> None:
    network = on_meta(50).eval()
    images = torch.empty(1, 3, 64, 64, device="meta")
    assert network.conv(images).shape == (1, 64, 64, 64)
    assert network.blocks(network.conv(images)).shape == (1, 2048, 8, 8)


@pytest.mark.parametrize("depth", [20, 0, -18])
def test_a_depth_that_was_not_published_is_an_error(depth: int) -> None:
    with pytest.raises(
        ValueError, match=f"TinyResNet: depth={depth} is not one of 18, 34, 50, 101, 152"
    ):
        TinyResNet(depth)  # type: ignore[arg-type]


def test_a_width_factor_of_zero_is_an_error() -> None:
    with pytest.raises(ValueError, match="TinyResNet: width_factor=0 must be above 0"):
        TinyResNet(18, width_factor=0)
