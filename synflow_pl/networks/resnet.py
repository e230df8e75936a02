"""ResNet for CIFAR, as in OpenLTH.

These are the networks of He et al. 2016, Section 4.2, with 1x1 convolutions on the shortcuts where
the shape changes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from synflow_pl.networks.blocks import Basic
from synflow_pl.networks.initialise import kaiming
from synflow_pl.networks.sizes import check_sizes

__all__ = ["ResNet"]


class ResNet(nn.Module):
    """ResNet-20, 32, 44, 56, 110 or 1202 for small images.

    The initialisation is Kaiming normal by fan-in.

    Args:
        depth: Number of weight layers, 6n + 2.
        width: Number of channels of the first stage. The second and third have two and four times
            as many. The wide versions have 32.
        residual_gains: Whether each identity shortcut has a gain per channel, which is one and not
            trained, and can be pruned like a weight.
        input_shape: Shape (C, H, W) of an image.
        num_classes: Number of logits, at least 1.

    Example:
        >>> import torch
        >>> from synflow_pl.networks import ResNet
        >>> network = ResNet(depth=8, num_classes=10)
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
        residual_gains: bool = False,
        input_shape: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(
                f"ResNet: depth={depth} is not 6n + 2; expected 20, 32, 44, 56, 110, 1202 or"
                " another such number"
            )
        check_sizes(self, width=width, num_classes=num_classes)
        self.conv = nn.Conv2d(input_shape[0], width, kernel_size=3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        channels = width
        blocks: list[nn.Module] = []
        for stage in range(3):
            for index in range((depth - 2) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Basic(channels, width * 2**stage, stride, residual_gains))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise the weights of the convolutions and the linear layer."""
        kaiming(self, nn.Conv2d, "fan_in")
        kaiming(self, nn.Linear, "fan_in")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images, (N, C, H, W)."""
        logits: Tensor = self.fc(
            self.pool(self.blocks(self.relu(self.bn(self.conv(images))))).flatten(1)
        )
        return logits
