"""FC: a plain multilayer perceptron, the model ``fc`` of the SynFlow code."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from synflow_pl.networks.sizes import check_sizes

__all__ = ["FC"]


class FC(nn.Module):
    """Linear layers with a nonlinearity between them.

    The initialisation is PyTorch's default (Kaiming uniform).

    Args:
        input_shape: Shape (C, H, W) of an image.
        num_classes: Number of logits, at least 1.
        depth: Number of linear layers, at least 1.
        width: Number of units of each hidden layer, at least 1.
        nonlinearity: Class of the pointwise module between the layers.

    Example:
        >>> import torch
        >>> from synflow_pl.networks import FC
        >>> network = FC(input_shape=(1, 28, 28), num_classes=10, depth=3)
        >>> network(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 10])
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
        """Return the logits, (N, num_classes), of images, (N, C, H, W)."""
        logits: Tensor = self.layers(images)
        return logits
