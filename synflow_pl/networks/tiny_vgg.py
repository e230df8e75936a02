"""TinyVGG: the VGGs that the SynFlow paper uses for Tiny ImageNet.

They follow weiaicunzai's networks for CIFAR-100, and are those of Simonyan & Zisserman 2015 with
smaller linear layers. "Tiny" refers to the images, not to the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from synflow_pl.networks.initialise import kaiming
from synflow_pl.networks.sizes import check_sizes, scaled
from synflow_pl.networks.vgg import features

__all__ = ["TinyVGG"]


class TinyVGG(nn.Module):
    """VGG-11, 13, 16 or 19 with three linear layers and dropout.

    The initialisation is Kaiming normal by fan-out for convolutions, normal with standard deviation
    0.01 for linear layers, and zero for biases.

    Args:
        depth: Number of weight layers.
        batch_norm: Whether a BatchNorm follows each convolution.
        hidden: Number of units of each of the two hidden linear layers, at least 1. It is 1024 in
            the SynFlow paper, and 4096 in weiaicunzai's code and in the original.
        dropout: Probability of dropping a hidden unit in train mode, in [0, 1).
        width_factor: Factor of the number of channels and hidden units, above 0; each layer has at
            least one.
        input_shape: Shape (C, H, W) of an image, H and W at least 32.
        num_classes: Number of logits, at least 1.

    Example:
        >>> import torch
        >>> from synflow_pl.networks import TinyVGG
        >>> network = TinyVGG(depth=11, width_factor=0.125, num_classes=10)
        >>> network(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: Literal[11, 13, 16, 19] = 16,
        batch_norm: bool = True,
        hidden: int = 1024,
        dropout: float = 0.5,
        width_factor: float = 1.0,
        input_shape: Sequence[int] = (3, 64, 64),
        num_classes: int = 200,
    ) -> None:
        super().__init__()
        channels, *size = input_shape
        if min(size) < 32:
            raise ValueError(
                f"TinyVGG: images of {size} are too small, it halves them five times; expected at"
                " least 32x32"
            )
        check_sizes(self, hidden=hidden, num_classes=num_classes)
        if not 0 <= dropout < 1:
            raise ValueError(f"TinyVGG: dropout={dropout} must be in [0, 1)")
        self.features = nn.Sequential(
            *features("TinyVGG", depth, batch_norm, channels, width_factor), nn.MaxPool2d(2)
        )
        hidden = scaled(hidden, width_factor)
        flat = scaled(512, width_factor) * (size[0] // 32) * (size[1] // 32)
        self.classifier = nn.Sequential(
            *(nn.Linear(flat, hidden), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout)),
            nn.Linear(hidden, num_classes),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise the weights of the convolutions and linear layers."""
        kaiming(self, nn.Conv2d, "fan_out")
        for module in self.classifier:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images, (N, C, H, W)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
