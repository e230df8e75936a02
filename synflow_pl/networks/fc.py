"""FC: a plain multilayer perceptron, the authors' default model `fc`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from synflow_pl.networks.sizes import check_sizes

__all__ = ["FC"]


class FC(nn.Module):
    """Linear layers with a nonlinearity between them, initialised as PyTorch does (Kaiming
    uniform).

    Args:
        input_shape: (C, H, W).
        num_classes: logits out, at least 1.
        depth: linear layers, at least 1.
        width: units in each hidden layer, at least 1.
        nonlinearity: pointwise module between the layers.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
        depth: int = 6,
        width: int = 100,
        nonlinearity: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        check_sizes(self, depth=depth, width=width, num_classes=num_classes)
        sizes = [math.prod(input_shape), *[width] * (depth - 1), num_classes]
        layers: list[nn.Module] = [nn.Flatten()]
        for index, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            if index > 0:
                layers.append(nonlinearity())
            layers.append(nn.Linear(fan_in, fan_out))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.layers(images)
        return logits
