"""VGG for CIFAR, as in OpenLTH (Frankle & Carbin 2019).

It has the convolutions of Simonyan & Zisserman 2015 and one linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from synflow_pl.networks.initialise import kaiming
from synflow_pl.networks.sizes import check_sizes, scaled

__all__ = ["VGG", "features"]

# Number of convolutions in each of the five stages. Max pooling between stages halves the
# resolution.
_PLANS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """VGG-11, 13, 16 or 19 with one linear layer.

    The initialisation is Kaiming normal by fan-in with zero biases.

    Args:
        depth: Number of weight layers of the original, which has three linear layers.
        batch_norm: Whether a BatchNorm follows each convolution.
        width_factor: Factor of the original's number of channels, above 0; each layer has at least
            one.
        input_shape: Shape (C, H, W) of an image, H and W at least 16.
        num_classes: Number of logits, at least 1.

    Example:
        >>> import torch
        >>> from synflow_pl.networks import VGG
        >>> network = VGG(depth=11, width_factor=0.125, num_classes=10)
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: Literal[11, 13, 16, 19] = 16,
        batch_norm: bool = True,
        width_factor: float = 1.0,
        input_shape: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        channels, *size = input_shape
        if min(size) < 16:
            raise ValueError(
                f"VGG: images of {size} are too small, it halves them four times; expected at least"
                " 16x16"
            )
        check_sizes(self, num_classes=num_classes)
        self.features = nn.Sequential(*features("VGG", depth, batch_norm, channels, width_factor))
        # For images of 32x32 this averages the remaining 2x2 positions, as in OpenLTH.
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(scaled(_WIDTHS[-1], width_factor), num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise the weights of the convolutions and the linear layer."""
        kaiming(self, nn.Conv2d, "fan_in")
        kaiming(self, nn.Linear, "fan_in")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images, (N, C, H, W)."""
        logits: Tensor = self.fc(self.pool(self.features(images)).flatten(1))
        return logits


def features(
    network: str, depth: int, batch_norm: bool, channels: int, width_factor: float = 1.0
) -> list[nn.Module]:
    """Return the convolutional part of a VGG as a list of modules.

    It maps (N, channels, H, W) to (N, 512 * width_factor, H // 16, W // 16).

    Args:
        network: Name of the network, for error messages.
        depth: Depth, one of 11, 13, 16 or 19.
        batch_norm: Whether a BatchNorm follows each convolution.
        channels: Number of channels of the images.
        width_factor: Factor of the original's number of channels, above 0.

    Raises:
        ValueError: If the depth is another number, or the width factor is not above 0.
    """
    if depth not in _PLANS:
        raise ValueError(f"{network}: depth={depth} is not one of {', '.join(map(str, _PLANS))}")
    layers: list[nn.Module] = []
    if width_factor <= 0:
        raise ValueError(
            f"{network}: width_factor={width_factor} must be above 0; 1 is the original's"
        )
    for stage, (convolutions, original) in enumerate(zip(_PLANS[depth], _WIDTHS, strict=True)):
        if stage > 0:
            layers.append(nn.MaxPool2d(2))
        out = scaled(original, width_factor)
        for _ in range(convolutions):
            layers.append(nn.Conv2d(channels, out, kernel_size=3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(out))
            layers.append(nn.ReLU())
            channels = out
    return layers
