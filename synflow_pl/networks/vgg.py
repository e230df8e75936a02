"""VGG for CIFAR, as in OpenLTH (Frankle & Carbin 2019): the convolutions of Simonyan & Zisserman
2015 and one linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from synflow_pl.networks.initialise import kaiming
from synflow_pl.networks.sizes import check_sizes, scaled

__all__ = ["VGG", "features"]

# Convolutions in each of the five stages; a stage ends at half the resolution, but for the last.
_PLANS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """VGG-11, 13, 16 or 19 with one linear layer; Kaiming normal by fan-in, zero biases.

    Args:
        depth: weight layers as counted in the original, with its three linear ones.
        batch_norm: a BatchNorm after each convolution.
        width_factor: times the original's channels, above 0; each layer has at least one.
        input_shape: (C, H, W), H and W at least 16.
        num_classes: logits out, at least 1.
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
                f"VGG: images of {size} are too small, it halves them four times; expected at least 16x16"
            )
        check_sizes(self, num_classes=num_classes)
        self.features = nn.Sequential(*features("VGG", depth, batch_norm, channels, width_factor))
        # At 32x32 this averages the 2x2 positions that are left, as the original does.
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(scaled(_WIDTHS[-1], width_factor), num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights of convolutions and the linear layer anew."""
        kaiming(self, nn.Conv2d, "fan_in")
        kaiming(self, nn.Linear, "fan_in")

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.fc(self.pool(self.features(images)).flatten(1))
        return logits


def features(
    network: str, depth: int, batch_norm: bool, channels: int, width_factor: float = 1.0
) -> list[nn.Module]:
    """The convolutions with what stands between them: (N, channels, H, W) to (N, 512 *
    width_factor, H // 16, W // 16).

    Args:
        network: name of the network that asks, for messages.
        depth: 11, 13, 16 or 19.
        batch_norm: a BatchNorm after each convolution.
        channels: channels of the images.
        width_factor: times the original's channels, above 0.

    Raises:
        ValueError: for another depth, or a width factor of 0 or less.
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
