"""TinyResNet: the ResNets that the SynFlow paper uses for Tiny ImageNet.

They follow weiaicunzai's networks for CIFAR-100. They are those of He et al. 2016, Table 1, with
another stem: one 3x3 convolution of stride 1 and no pooling, so that small images keep their
resolution. "Tiny" refers to the images, not to the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from synflow_pl.networks.blocks import Basic, Bottleneck
from synflow_pl.networks.initialise import kaiming
from synflow_pl.networks.sizes import check_sizes, scaled

__all__ = ["TinyResNet"]

# Blocks in each of the four stages.
_PLANS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
_WIDTH = 64
# Output channels of a bottleneck block over those of its 3x3 convolution.
_EXPANSION = 4


class TinyResNet(nn.Module):
    """ResNet-18, 34, 50, 101 or 152 for images of 32x32 to 64x64, and their wide versions.

    The initialisation is Kaiming normal by fan-out for convolutions and PyTorch's default (Kaiming
    uniform) for the classifier.

    ``width_factor=2`` at depth 18 is not the network published as WideResNet-18 with SynFlow. In
    the published code the width had no effect, and the trained network is a plain ResNet-18 (the
    recipes ``*_wrn18_as_published``).

    Args:
        depth: Number of weight layers.
        width_factor: Factor of the number of channels, above 0, as in Zagoruyko & Komodakis 2016.
            It applies to whole blocks at depths 18 and 34, and to the 3x3 convolution alone in the
            bottlenecks of the other depths. The stem has 64 channels, or fewer if the factor is
            below 1.
        residual_gains: Whether each identity shortcut has a gain per channel, which is one and not
            trained, and can be pruned like a weight.
        input_shape: Shape (C, H, W) of an image.
        num_classes: Number of logits, at least 1.

    Example:
        >>> import torch
        >>> from synflow_pl.networks import TinyResNet
        >>> network = TinyResNet(depth=18, width_factor=0.125, num_classes=10)
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: Literal[18, 34, 50, 101, 152] = 18,
        width_factor: float = 1,
        residual_gains: bool = False,
        input_shape: Sequence[int] = (3, 64, 64),
        num_classes: int = 200,
    ) -> None:
        super().__init__()
        if depth not in _PLANS:
            raise ValueError(
                f"TinyResNet: depth={depth} is not one of {', '.join(map(str, _PLANS))}"
            )
        check_sizes(self, num_classes=num_classes)
        if width_factor <= 0:
            raise ValueError(
                f"TinyResNet: width_factor={width_factor} must be above 0; 1 is the original's"
                " width"
            )
        channels = scaled(_WIDTH, min(width_factor, 1))
        self.conv = nn.Conv2d(input_shape[0], channels, kernel_size=3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        blocks: list[nn.Module] = []
        for stage, count in enumerate(_PLANS[depth]):
            width = _WIDTH * 2**stage
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                if depth < 50:
                    out = scaled(width, width_factor)
                    blocks.append(Basic(channels, out, stride, residual_gains))
                else:
                    out = scaled(width, min(width_factor, 1)) * _EXPANSION
                    blocks.append(
                        Bottleneck(
                            channels, scaled(width, width_factor), out, stride, residual_gains
                        )
                    )
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise the weights of the convolutions; the classifier reinitialises itself."""
        kaiming(self, nn.Conv2d, "fan_out")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images, (N, C, H, W)."""
        logits: Tensor = self.fc(
            self.pool(self.blocks(self.relu(self.bn(self.conv(images))))).flatten(1)
        )
        return logits
