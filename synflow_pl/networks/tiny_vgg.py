"""TinyVGG: the VGGs that the authors of SynFlow use for Tiny ImageNet, after weiaicunzai's for
CIFAR-100.

Those of Simonyan & Zisserman 2015 with smaller linear layers. The images are tiny, not the network.
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
    """VGG-11, 13, 16 or 19 with three linear layers and dropout; convolutions Kaiming normal by
    fan-out, linear layers normal with deviation 0.01, biases zero.

    Args:
        depth: weight layers.
        batch_norm: a BatchNorm after each convolution.
        hidden: units of the two hidden linear layers, at least 1. The authors have 1024,
            weiaicunzai and the original 4096.
        dropout: share of hidden units dropped in training, in [0, 1).
        width_factor: times these channels and hidden units, above 0; each layer has at least one.
        input_shape: (C, H, W), H and W at least 32.
        num_classes: logits out, at least 1.
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
                f"TinyVGG: images of {size} are too small, it halves them five times; expected at least 32x32"
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
        """Draw the weights of convolutions and linear layers anew."""
        kaiming(self, nn.Conv2d, "fan_out")
        for module in self.classifier:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
