import pytest
import torch
from torch import nn

from synflow_pl.networks import ResNet

# Millions of parameters in Table 6 of He et al. 2016, whose shortcuts have no parameters.
PUBLISHED = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7, 1202: 19.4}


def on_meta(depth: int, **options: int) -> ResNet:
    with torch.device("meta"):
        return ResNet(depth, **options)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def without_shortcuts(depth: int, width: int) -> int:
    """Return the number of parameters without shortcuts.

    The network has a first convolution, 2n convolutions in each of three stages, a gain and a shift
    per channel after each convolution, and a classifier.
    """
    n = (depth - 2) // 6
    w1, w2, w3 = width, 2 * width, 4 * width
    stem = 9 * 3 * w1
    stages = 9 * (2 * n * w1**2 + w1 * w2 + (2 * n - 1) * w2**2 + w2 * w3 + (2 * n - 1) * w3**2)
    norms = 2 * (w1 + 2 * n * (w1 + w2 + w3))
    return stem + stages + norms + w3 * 10 + 10


def shortcuts(width: int) -> int:
    """Return the number of parameters of two 1x1 convolutions with BatchNorm as shortcuts."""
    return width * 2 * width + 2 * width * 4 * width + 2 * (2 * width + 4 * width)


@pytest.mark.parametrize("depth", PUBLISHED)
def test_the_network_has_the_published_number_of_parameters(depth: int) -> None:
    expected = without_shortcuts(depth, 16)
    digits = 1 if depth >= 110 else 2
    assert round(expected / 1e6, digits) == PUBLISHED[depth]
    assert count(on_meta(depth)) == expected + shortcuts(16)


@pytest.mark.parametrize("depth", PUBLISHED)
def test_the_wide_network_has_32_channels_in_the_first_stage(depth: int) -> None:
    assert count(on_meta(depth, width=32)) == without_shortcuts(depth, 32) + shortcuts(32)


def test_resnet20_has_272_474_parameters_and_22_prunable_layers() -> None:
    # 269,722 without shortcuts; shortcuts have 512 + 2048 weights and 192 gains and shifts.
    network = on_meta(20)
    assert count(network) == 269_722 + 2_752
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 20 + 2
    assert [m.bias is not None for m in layers] == 21 * [False] + [True]


def test_shortcuts_have_weights_only_where_the_shape_changes() -> None:
    kernels = [
        block.shortcut[0]
        for block in on_meta(20).blocks
        if not isinstance(block.shortcut, nn.Identity)
    ]
    assert [
        (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride) for conv in kernels
    ] == [
        (16, 32, (1, 1), (2, 2)),
        (32, 64, (1, 1), (2, 2)),
    ]


def test_two_of_the_three_stages_halve_the_image() -> None:
    network = ResNet(8).eval()
    assert network.blocks(torch.zeros(1, 16, 32, 32)).shape == (1, 64, 8, 8)


def test_a_block_is_the_relu_of_branch_plus_shortcut() -> None:
    block = ResNet(8).blocks[0].eval()
    nn.init.zeros_(block.conv2.weight)  # the branch is zero, so that only the shortcut is left
    signal = torch.tensor([-1.0, 2.0]).view(1, 1, 1, 2).expand(1, 16, 4, 2)
    torch.testing.assert_close(block(signal), signal.clamp(min=0))


@pytest.mark.parametrize("depth", [2, 21, 18, -4])
def test_a_depth_that_is_not_6n_plus_2_is_an_error(depth: int) -> None:
    with pytest.raises(ValueError, match=f"ResNet: depth={depth} is not 6n \\+ 2"):
        ResNet(depth)


@pytest.mark.parametrize("width", [0, -16])
def test_a_width_below_one_is_an_error(width: int) -> None:
    with pytest.raises(ValueError, match=f"ResNet: width={width} must be at least 1"):
        ResNet(20, width=width)
